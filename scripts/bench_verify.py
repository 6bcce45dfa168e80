"""``scripts/bench verify``: verifying artifacts of a model with Qwen1.5-110B's layers.

Two checkpoints of different depth, with random weights in the true shapes, and artifacts of each
go through ``zenconvert verify`` with the bundled texts of ten languages: once with nothing cached
(the reference's pass, the noise floor, the candidate), and once more, when only the candidate is
left. What a layer takes is told by the two depths. ``--divide`` makes every shape smaller.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from scripts.bench_convert import measure, synthetic_model
from scripts.bench_layers import LAYERS, options, shape_of

TARGETS: Final = {"GPTQ w4g128": "gptq:w4g128", "GGUF Q4_K_M": "gguf:q4_k_m", "BF16": "hf:bf16"}


def seconds_of(model: Path, artifact: Path, device: str, cache: Path) -> tuple[float, int]:
    """One verification: seconds, and tokens that were scored."""
    os.environ["ZENCONVERT_CACHE"] = str(cache)
    report = cache / "report.json"
    command = [sys.executable, "-m", "zenconvert", "verify", str(model), str(artifact)]
    run = measure([*command, "--device", device, "--json", str(report)])
    return run.seconds, json.loads(report.read_text())["overall"]["tokens"]


def main() -> None:
    """Run the benchmark and print the table."""
    given = options(__doc__).parse_args()
    few, more = given.layers
    print(f"{shape_of(given.divide)}, {few} and {more} layers, {given.device}")
    print(f"{'':14}{'layers':>7}{'nothing cached':>16}{'the candidate':>15}{'tokens':>9}")
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work, taken = Path(name), dict[tuple[str, int], tuple[float, float]]()
        for layers in (few, more):
            model = work / f"model-{layers}"
            synthetic_model(model, 0, shape_of(given.divide), layers)
            for label, target in TARGETS.items():
                out = work / (f"{layers}.gguf" if target.startswith("gguf") else f"out-{layers}")
                measure([sys.executable, "-m", "zenconvert", "convert", str(model), str(out),
                         "--to", target, "--device", given.device, "--force"])  # fmt: skip
                with tempfile.TemporaryDirectory(dir=work) as cache:
                    first, tokens = seconds_of(model, out, given.device, Path(cache))
                    again, _ = seconds_of(model, out, given.device, Path(cache))
                taken[label, layers] = first, again
                print(f"{label:14}{layers:7}{first:14.1f} s{again:13.1f} s{tokens:9}", flush=True)
    for label in TARGETS:
        each = [
            (b - a) / (more - few)
            for a, b in zip(taken[label, few], taken[label, more], strict=True)
        ]
        whole = [a + (LAYERS - few) * one for a, one in zip(taken[label, few], each, strict=True)]
        print(
            f"{label}: {each[0]:.2f} s a layer with nothing cached, {each[1]:.2f} s the candidate; "
            f"{LAYERS} layers {whole[0] / 60:.1f} and {whole[1] / 60:.1f} minutes"
        )


if __name__ == "__main__":
    main()
