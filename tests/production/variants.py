"""Variants of a tiny model that the tests of productions share."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from zenconvert.base.scratch import is_mark
from zenconvert.batch.production import Gathered, Variant, gather, produce
from zenconvert.model.target import Target
from zenconvert.solve.calibration_texts import Calibrating

SAMPLES: dict[str, Any] = {
    "languages": ["en", "ar"], "tokens_per_language": 200, "context": 64,
}  # fmt: skip
TARGETS = {
    "q4": "gguf:q4_k_m",
    "q5": "gguf:q5_k_m",
    "iq3": "gguf:iq3_xxs",
    "gptq": "gptq:w4g128",
    "awq": "awq:w4g128",
    "onnx": "onnx:int4-g128",
    "f16": "hf:f16",
}
GGUF = ("q4", "q5", "iq3")


def variants(out: Path, *names: str, **given: Any) -> list[Variant]:
    """The named ones, or all, to be written into a folder."""
    found = []
    for name in names or TARGETS:
        target = Target.parse(TARGETS.get(name, name))
        file = f"{name.replace(':', '-')}{'.gguf' if target.format == 'gguf' else ''}"
        found.append(Variant(Path(file).stem, out / file, target, **given))
    return found


def calibrating(**changes: Any) -> Calibrating:
    """Few texts."""
    return replace(Calibrating(**SAMPLES), **changes)


def everything(source: str | Path, out: Path, state: Path) -> tuple[Gathered, dict[str, Any]]:
    """A whole production."""
    wanted = variants(out)
    gathered = gather(source, wanted, calibrating(), state, imatrix=state / "imatrix.gguf")
    return gathered, produce(source, wanted, gathered, folder=state, threads=2)


def digests(path: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too → SHA-256; of a file, its own. Without marks."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files = [file for file in files if not is_mark(file)]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
