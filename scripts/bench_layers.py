"""``scripts/bench layers``: whole conversions of a model with Qwen1.5-110B's layers.

A checkpoint with random weights and a few layers of the true shapes (hidden 8192, ffn 49152, 64
heads of which 8 hold keys and values) goes through the command line: one walk of the bundled texts
of ten languages, solving, writing; "rounded" needs no texts, "filled" has ``--solver gptq``. What a
layer takes is told by two models of different depth.
``--divide`` makes every shape smaller, for a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench_convert import Measured, Shape, measure, synthetic_model

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 8192, 49152, 64, 8, 80
TARGETS = {
    "GPTQ w4g128": ("gptq:w4g128", "gptq"),
    "AWQ w4g128": ("awq:w4g128", "awq"),
    "GGUF Q4_K_M": ("gguf:q4_k_m", "q4_k_m.gguf"),
    "GGUF filled": ("gguf:q4_k_m", "filled.gguf"),
    "GPTQ rounded": ("gptq:w4g128", "rounded"),
}
"""Label → target, and the end of the output's name."""
CONVERT = [sys.executable, "-m", "zenconvert", "convert"]


@dataclass
class Gpu:
    """The most memory of all GPUs together that was in use, sampled."""

    before: float = 0.0
    peak: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[Gpu]:
        """Sample until the block ends."""
        self.before = self._used()
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield self
        finally:
            self.done.set()
            watcher.join()

    def _watch(self) -> None:
        while not self.done.wait(0.2):
            self.peak = max(self.peak, self._used() - self.before)

    @staticmethod
    def _used() -> float:
        """GiB."""
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return sum(map(float, found.split())) / 1024


def shape_of(divide: int) -> Shape:
    """The block, every size divided; heads keep their 128 numbers as long as there are 8."""
    heads = max(HEADS // divide, KV_HEADS)
    return Shape(HIDDEN // divide, FFN // divide, heads, min(KV_HEADS, heads))


def convert(
    source: Path, out: Path, target: str, device: str
) -> tuple[Measured, float, dict[str, Any]]:
    """One conversion: its run, GiB of GPU memory, and what became of every module."""
    report = out.with_suffix(".json")
    command = [*CONVERT, str(source), str(out), "--to", target]
    if out.name.endswith("rounded"):
        return measure(command), 0.0, {}
    if out.name.endswith("filled.gguf"):
        command += ["--solver", "gptq"]
    command += ["--calibrate", "--device", device, "--report", str(report)]
    if device == "cpu":
        return measure(command), 0.0, _modules(report)
    with Gpu().watched() as gpu:
        run = measure(command)
    return run, gpu.peak, _modules(report)


def _modules(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return found


def summary(modules: dict[str, Any]) -> str:
    """Methods, the largest error and its ratio to rounding's."""
    if not modules:
        return ""
    methods = sorted({module["method"] for module in modules.values()})
    worst = max(modules.values(), key=lambda module: module["error"])
    ratio = max(module["error"] / module["rtn_error"] for module in modules.values())
    return (
        f"{len(modules)} modules by {', '.join(methods)}, largest error {worst['error']:.3g}, "
        f"at most {ratio:.2f} of rounding's"
    )


def options(about: str | None) -> argparse.ArgumentParser:
    """The command line: two depths, what divides the shapes, the device, a folder for files."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--layers", type=int, nargs=2, default=(1, 3), help="of the two models")
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, help="where to put some tens of GB")
    return parser


def main() -> None:
    """Run the benchmark and print the table."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=TARGETS, action="append", help="of the targets")
    given = parser.parse_args()
    shape, (few, more), labels = shape_of(given.divide), given.layers, given.only or list(TARGETS)
    print(f"{shape}, {few} and {more} layers, {given.device}")
    print(f"{'':14}{'layers':>7}{'seconds':>9}{'peak RSS':>11}{'GPU':>11}")
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work, taken = Path(name), dict[tuple[str, int], float]()
        for label in labels:  # kernels are compiled before time is taken
            target, end = TARGETS[label]
            measure([*CONVERT, "builtin:zen-nano", str(work / f"warm-{end}"), "--to", target])
        for layers in (few, more):
            model = work / f"model-{layers}"
            synthetic_model(model, 0, shape, layers)
            for label in labels:
                target, end = TARGETS[label]
                run, peak, modules = convert(model, work / f"{layers}-{end}", target, given.device)
                taken[label, layers] = run.seconds
                print(
                    f"{label:14}{layers:7}{run.seconds:9.1f}{run.peak_rss / 1e9:8.1f} GB"
                    f"{peak:7.1f} GiB  {summary(modules)}",
                    flush=True,
                )
    for label in labels:
        each = (taken[label, more] - taken[label, few]) / (more - few)
        whole = taken[label, few] + (LAYERS - few) * each
        print(f"{label}: {each:.1f} s a layer, {LAYERS} layers {whole / 60:.1f} minutes")


if __name__ == "__main__":
    main()
