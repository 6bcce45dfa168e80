"""Formats whose columns are rows of ours: the same bytes, however few of them move at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.safety.outputs import everything
from zenconvert import convert
from zenconvert.model import pieces
from zenconvert.write import one_pass, place

Model = Callable[[str], Path]


@pytest.mark.parametrize("target", ["gptq:w3g64-asym", "awq:w4g64", "onnx:f32"])
def test_small_bands_give_the_same_bytes(
    target: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and read in bands of one slab, of several, and ones that end within a tensor."""
    written, read = tmp_path / "written", tmp_path / "read"
    convert(model("qwen2"), written, target)
    convert(written, read, "hf:f32")
    monkeypatch.setattr(place, "PACKED_ROWS", 32)
    monkeypatch.setattr(one_pass, "SLAB_ELEMENTS", 4000)
    for band, run in ((1, 1), (5000, 64)):
        monkeypatch.setattr(pieces, "BAND_BYTES", band)
        monkeypatch.setattr(pieces, "RUN_BYTES", run)
        convert(model("qwen2"), tmp_path / f"written-{band}", target, threads=3)
        assert everything(tmp_path / f"written-{band}") == everything(written)
        convert(written, tmp_path / f"read-{band}", "hf:f32", threads=3)
        assert everything(tmp_path / f"read-{band}") == everything(read)
