"""``scripts/bench fidelity``: what 4-bit files of ours lose, beside those of other tools.

For every model: GPTQ beside GPTQModel, AWQ beside AutoAWQ, GGUF Q4_K_M beside llama.cpp's own
quantizer, all from the same calibration windows, and ours once more from English windows alone,
GPTQ and AWQ also with ``--sequential``; then GGUF types as llama.cpp rounds them and as
``--solver gptq`` fills them, and types that ``gguf:auto`` chose for the same number of bytes.
Every file is reopened and measured by the same verification on the same held-out text.

    scripts/bench fidelity --text FOLDER [--model SRC]... [--characters 20000] [--write FILE.md]
        [--filled [--type gguf:q4_k_m]...]

FOLDER holds ``<language>.dev.jsonl[.xz]`` with a ``text`` in each row. What was made stays in
``bench-output/`` and is not made again. The peers run in the environments of ``scripts/oracles``;
``--filled`` leaves them out, and all but the GGUF types.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zenconvert
from tests.oracles.llama_quantize import quantize
from zenconvert.calib.statistics_reader import load_importance
from zenconvert.model.allotment import Budget
from zenconvert.model.target import Options, Solver
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.samples import LANGUAGES
from zenconvert.verification.report import Report

ROOT = Path(__file__).parent.parent
ORACLES = Path(os.environ.get("ZENCONVERT_ORACLES", ROOT / ".venv-oracles"))
OUT = ROOT / "bench-output"
PEERS = ROOT / "scripts" / "peers"
CONTEXT = 512
GROUP = 128
Q4_K_M = 15  # llama_ftype
MEANS: dict[str, tuple[Solver, bool]] = {
    "rtn": ("rtn", False),
    "gptq": ("gptq", False),
    "gptq, fisher": ("gptq", True),
}
"""How GGUF types are filled: the solver, and whether it knows gradients."""
CHOSEN: dict[str, Solver] = {"auto": "rtn", "auto, gptq, fisher": "gptq"}
"""How types are filled that were chosen to take as many bytes together."""
FILLED = ("gguf:q4_k_m", "gguf:q3_k_m", "gguf:q2_k", "gguf:q4_0", "gguf:iq4_xs")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    tool: str
    kind: str
    samples: str
    report: Report

    def cells(self) -> tuple[str, ...]:
        """Markdown cells."""
        overall, worst = self.report.overall, self.report.worst_language
        return (
            self.kind,
            self.tool,
            self.samples,
            f"{overall.kl_mean:.5f}",
            f"{self.report.languages[worst].kl_mean:.5f} ({worst})",
            f"{overall.perplexity_ratio:.4f}",
            f"{100 * overall.top1:.2f} %",
        )


HEAD = ("file", "made by", "calibrated on", "mean KL", "worst language", "ppl ratio", "top-1")


def evaluation_text(folder: Path, out: Path, characters: int) -> None:
    """At most so many characters of held-out text of every language, as one JSONL file."""
    rows = []
    for language in LANGUAGES:
        left = characters
        for text in held_out(folder, language):
            if left > 0:
                rows.append({"language": language, "text": text[:left]})
                left -= len(text)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def held_out(folder: Path, language: str) -> list[str]:
    """The held-out texts of one language."""
    for name in (f"{language}.dev.jsonl", f"{language}.dev.jsonl.xz"):
        path = folder / name
        if path.exists():
            data = path.read_bytes()
            text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
            return [json.loads(line)["text"] for line in text.split("\n") if line]
    sys.exit(f"{folder}: no {language}.dev.jsonl or .jsonl.xz")


def peer(environment: str, script: str, *arguments: object) -> None:
    """Run a peer in its own environment."""
    python = ORACLES / environment / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: run scripts/oracles first")
    command = [str(python), str(PEERS / script), *map(str, arguments)]
    variables = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "PYTHONPATH": ""}
    # GPTQModel leaves log files where it runs
    done = subprocess.run(
        command, env=variables, cwd=OUT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


class Bench:
    """One model: its folder of outputs and what is measured there."""

    def __init__(self, source: str, text: Path) -> None:
        name = source.removeprefix("builtin:").rstrip("/").split("/")[-1]
        self.source, self.text, self.folder = source, text, OUT / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.statistics = {"ten languages": self.calibrate(None), "English": self.calibrate(["en"])}

    def calibrate(self, languages: list[str] | None, *, fisher: bool = False) -> Path:
        """Statistics of the bundled texts, in windows that every tool can take."""
        name = "all" if languages is None else languages[0]
        out = self.folder / f"{name}{'-fisher' if fisher else ''}.stats"
        if not out.exists():
            zenconvert.calibrate(
                self.source, out, purposes=["gptq"], languages=languages, context=CONTEXT,
                fisher=fisher,
            )  # fmt: skip
        return out

    def windows(self) -> Path:
        """The token ids of the same windows, for the peers."""
        out = self.folder / "windows.json"
        selection = Calibrating(context=CONTEXT).selection(zenconvert.open_checkpoint(self.source))
        out.write_text(json.dumps([list(window.ids) for window in selection.windows]))
        return out

    def ours(self, kind: str, target: str, samples: str) -> Row:
        """A file of ours."""
        suffix = ".gguf" if target.startswith("gguf") else ""
        out = self.folder / f"{kind.replace(' ', '-')}-{samples.replace(' ', '-')}{suffix}"
        if not out.exists():
            zenconvert.convert(self.source, out, target, statistics=self.statistics[samples])
        return self.measured("zenconvert", kind, samples, out)

    def filled(self, target: str) -> list[Row]:
        """A GGUF type as llama.cpp rounds it, and as solvers fill it."""
        kind, rows = target.removeprefix("gguf:"), []
        for name, (solver, fisher) in MEANS.items():
            out = self.folder / f"{kind}-{name.replace(', ', '-')}.gguf"
            if not out.exists():
                given = self.calibrate(None, fisher=fisher)
                zenconvert.convert(self.source, out, target, statistics=given, solver=solver)
            rows.append(
                self.measured(f"zenconvert, {name}", f"GGUF {kind.upper()}", "ten languages", out)
            )
        size = (self.folder / f"{kind}-rtn.gguf").stat().st_size
        return rows + [self.chosen(kind, name, solver, size) for name, solver in CHOSEN.items()]

    def chosen(self, kind: str, name: str, solver: Solver, size: int) -> Row:
        """A file with types of its own, no larger than that of a type."""
        out = self.folder / f"{kind}-{name.replace(', ', '-')}.gguf"
        if not out.exists():
            given, options = self.calibrate(None, fisher=True), Options(size=Budget(nbytes=size))
            done = zenconvert.convert(
                self.source, out, "gguf:auto", statistics=given, solver=solver, options=options
            )
            print(f"{out.name}: {done.plan.output_bytes} of {size} bytes", file=sys.stderr)
        made = f"zenconvert, {name}"
        return self.measured(made, f"GGUF types in {kind.upper()}'s bytes", "ten languages", out)

    def sequential(self, kind: str, target: str) -> Row:
        """A file of ours whose modules see what the quantized ones before them put out."""
        out = self.folder / f"{kind.replace(' ', '-')}-sequential"
        if not out.exists():
            walk = Calibrating(context=CONTEXT, sequential=True)
            zenconvert.convert(self.source, out, target, calibrating=walk)
        return self.measured("zenconvert", kind, "ten languages, sequential", out)

    def measured(self, tool: str, kind: str, samples: str, path: Path) -> Row:
        """Reopen a file and measure it."""
        print(f"measuring {path.name} …", file=sys.stderr, flush=True)
        report = zenconvert.verify(self.source, path, text=self.text, context=CONTEXT)
        return Row(tool, kind, samples, report)

    def gptqmodel(self) -> Row:
        """GPTQModel's file."""
        out = self.folder / "gptqmodel"
        if not out.exists():
            peer("gptqmodel", "gptqmodel_quantize.py", self.path, self.windows(), out, 4, GROUP)
        return self.measured("GPTQModel", "GPTQ w4g128", "ten languages", out)

    def autoawq(self) -> Row:
        """AutoAWQ's file."""
        out = self.folder / "autoawq"
        if not out.exists():
            peer("autoawq", "autoawq_quantize.py", self.path, self.windows(), out, GROUP)
        return self.measured("AutoAWQ", "AWQ w4g128", "ten languages", out)

    def llamacpp(self) -> Row:
        """llama.cpp's file, from a bf16 file and importance weights of the same sums."""
        out = self.folder / "llamacpp.gguf"
        if not out.exists():
            full = self.folder / "bf16.gguf"
            zenconvert.convert(self.source, full, "gguf:bf16", force=True)
            checkpoint = zenconvert.open_checkpoint(self.source)
            weights = load_importance(self.statistics["ten languages"], checkpoint, logical_rows)
            names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
            quantize(
                full,
                out,
                Q4_K_M,
                importance={n.gguf: weights[n.name] for n in names if n.name in weights},
            )
        return self.measured("llama.cpp", "GGUF Q4_K_M", "ten languages", out)

    @property
    def path(self) -> Path:
        """The model's folder."""
        return zenconvert.open_checkpoint(self.source).path

    def rows(self, *, filled: bool, types: Sequence[str] = FILLED) -> list[Row]:
        """The whole table, theirs after ours, or what GGUF types are filled with."""
        if filled:
            return [row for target in types for row in self.filled(target)]
        rows = []
        for kind, target, theirs in (
            ("GPTQ w4g128", "gptq:w4g128", self.gptqmodel),
            ("AWQ w4g128", "awq:w4g128", self.autoawq),
            ("GGUF Q4_K_M", "gguf:q4_k_m", self.llamacpp),
        ):
            rows += [self.ours(kind, target, samples) for samples in self.statistics]
            if not target.startswith("gguf"):
                rows.append(self.sequential(kind, target))
            rows.append(theirs())
        return rows + self.rows(filled=True)


def table(title: str, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--characters", type=int, default=20_000, help="of every language")
    parser.add_argument("--write", type=Path, help="also write the tables here")
    parser.add_argument("--filled", action="store_true", help="only GGUF types")
    parser.add_argument("--type", action="append", help="of those of --filled; gguf:q4_k_m, …")
    parser.add_argument("--fresh", action="store_true", help="make everything again")
    given = parser.parse_args()
    if given.fresh:
        shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(exist_ok=True)
    text = OUT / f"held-out-{given.characters}.jsonl"
    evaluation_text(given.text, text, given.characters)
    tables = []
    for source in given.model or ["builtin:zen-nano"]:
        bench = Bench(source, text)
        tables.append(
            table(bench.folder.name, bench.rows(filled=given.filled, types=given.type or FILLED))
        )
        print(tables[-1], flush=True)
    if given.write is not None:
        given.write.write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
