"""``scripts/bench onnx``: ONNX folders beside those of onnxruntime-genai's own builder.

For the bundled model and a synthetic one: bytes of graph and weights, seconds and peak memory of
the command that wrote them, and how far what onnxruntime computes with them is from the original on
the bundled evaluation texts. Every file is run by the same onnxruntime with the same settings.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scripts.bench_convert import Measured, measure, synthetic_model
from zenconvert import open_checkpoint
from zenconvert.texts.samples import load_bundled
from zenconvert.verification.engines.onnxruntime_errors import Distance, reference_logits
from zenconvert.verification.engines.onnxruntime_session import OnnxSession
from zenconvert.verification.measurement import evaluation_windows

_ZENCONVERT: Final = (sys.executable, "-m", "zenconvert", "convert")
_BUILDER: Final = (sys.executable, "-m", "onnxruntime_genai.models.builder")
_CALIBRATED: Final = ("--calibrate", "--solver", "gptq")
_CALIBRATION: Final = 25_600
"""Tokens of a language; the synthetic model, where they mean nothing, gets a twentieth."""
_WITH_HEAD: Final = ("--output-type", "int4")

OURS: Final[dict[str, tuple[str, ...]]] = {
    "zenconvert f16": ("--to", "onnx:f16"),
    "zenconvert int4": ("--to", "onnx:int4"),
    "zenconvert int4, head too": ("--to", "onnx:int4", *_WITH_HEAD),
    "zenconvert int4, gptq": ("--to", "onnx:int4", *_CALIBRATED),
    "zenconvert int4, gptq, head too": ("--to", "onnx:int4", *_CALIBRATED, *_WITH_HEAD),
}
THEIRS: Final[dict[str, tuple[str, ...]]] = {
    "genai fp16": ("-p", "fp16"),
    "genai int4 (its default)": ("-p", "int4"),
    "genai int4, k_quant, zero points": (
        "-p", "int4", "--extra_options", "algo_config=k_quant", "is_symmetric=false",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    run: Measured
    size: int
    kl: float
    """Mean over all positions, nats."""


def size_of(folder: Path) -> int:
    """Bytes of the graph and its weights."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("model.onnx"))


class Reference:
    """Logits of the original on one window of every language."""

    def __init__(self, source: str, tokens: int) -> None:
        checkpoint = open_checkpoint(source)
        spans = evaluation_windows(checkpoint, load_bundled("evaluation", None), tokens)
        first = {span.language: tuple(span.ids) for span in reversed(spans)}
        self.ids: list[Sequence[int]] = [first[language] for language in sorted(first)]
        self.logits = [reference_logits(checkpoint, ids) for ids in self.ids]

    def divergence(self, folder: Path, threads: int) -> float:
        """Mean KL of what onnxruntime computes with the weights of a folder."""
        session = OnnxSession(open_checkpoint(folder), threads=threads)
        found = []
        for ids, base in zip(self.ids, self.logits, strict=True):
            session.restart()
            found.append(Distance.between(base, session.step(ids)).kl)
        return float(np.mean(found))


def rows(
    source: str, folder: Path, work: Path, calibration: int, given: argparse.Namespace
) -> list[Row]:
    """Write and measure everything for one model, with so many tokens of every language."""
    reference = Reference(source, given.tokens)
    threads, commands = str(given.threads), {}
    for name, options in OURS.items():
        if given.rounded and "--calibrate" in options:
            continue
        out = work / name.replace(" ", "-")
        command = [*_ZENCONVERT, source, str(out), "--threads", threads, *options]
        if "--calibrate" in options:
            command += ["--tokens-per-language", str(calibration)]
        commands[name] = out, command
    for name, options in THEIRS.items():
        out = work / name.replace(" ", "-")
        where = ("-i", str(folder), "-o", str(out), "-e", "cpu", "-c", str(work / "cache"))
        commands[name] = out, [*_BUILDER, *where, *options]
    found = []
    for name, (out, command) in commands.items():
        run = measure(command)
        found.append(Row(name, run, size_of(out), reference.divergence(out, given.threads)))
    return found


def show(title: str, found: Sequence[Row]) -> None:
    """Print the table of one model."""
    print(f"\n{title}")
    print(f"{'':34}{'MB':>9}{'seconds':>10}{'peak RSS':>12}{'KL':>11}")
    for row in found:
        memory = f"{row.run.peak_rss / 1e6:.0f} MB"
        size = row.size / 1e6
        print(f"{row.name:34}{size:9.1f}{row.run.seconds:10.1f}{memory:>12}{row.kl:11.2e}")


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=0.6, help="GB of synthetic bf16 weights")
    parser.add_argument("--tokens", type=int, default=128, help="longest window per language")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounded", action="store_true", help="leave out what is calibrated")
    parser.add_argument("--work", type=Path, help="where to put about ten times the size")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work = Path(name)
        nano = open_checkpoint("builtin:zen-nano").path
        (work / "nano").mkdir()
        show("zen-nano", rows("builtin:zen-nano", nano, work / "nano", _CALIBRATION, given))
        big = work / "synthetic" / "model"
        synthetic_model(big, int(given.size * 1e9))
        found = rows(str(big), big, work / "synthetic", _CALIBRATION // 20, given)
        show(f"synthetic Qwen2, {given.size:g} GB of bf16 weights", found)


if __name__ == "__main__":
    main()
