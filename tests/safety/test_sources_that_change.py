"""A source that is rewritten during a run gives no output; token ids beyond it are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.safety.outputs import names
from zenconvert import calibrate, convert, verify
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound
from zenconvert.texts.samples import Sample
from zenconvert.texts.windows import Cutter

CHANGES: dict[str, Callable[[Path], object]] = {
    "in place": lambda path: path.write_bytes(path.read_bytes()),
    "another file": lambda path: shutil.move(shutil.copy(path, f"{path}.new"), path),
    "longer": lambda path: path.open("ab").write(b" "),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_source_that_changes_under_a_conversion(
    name: str, target: str, change: Callable[[Path], object], source: Path, tmp_path: Path
) -> None:
    done: list[Any] = []

    def once(stage: str, at: int, total: int) -> None:
        if not done:
            done.append(change(source / name))

    with pytest.raises(CorruptFile, match=name):
        convert(source, tmp_path / "out", target, progress=once)
    assert done
    assert names(tmp_path) == {"model"}


def test_a_source_that_goes_away(source: Path, tmp_path: Path) -> None:
    def remove(stage: str, at: int, total: int) -> None:
        (source / "tokenizer.json").unlink(missing_ok=True)

    with pytest.raises(SourceNotFound, match=r"tokenizer\.json"):
        convert(source, tmp_path / "out", "gguf:f16", progress=remove)
    assert names(tmp_path) == {"model"}


def test_a_source_that_changes_under_a_calibration(source: Path, tmp_path: Path) -> None:
    def change(at: object) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))

    few: dict[str, Any] = {"languages": ["en"], "tokens_per_language": 64, "context": 32}
    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        calibrate(source, tmp_path / "x.stats", progress=change, **few)
    assert "x.stats" not in names(tmp_path)


def test_a_model_that_changes_under_a_verification(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 8)

    def change(stage: str, at: int, total: int) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))

    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        verify(source, source, text=text, context=16, progress=change)


def test_ids_beyond_the_embedding(source: Path, tmp_path: Path) -> None:
    """The rows would be whatever stood in memory."""
    path = source / "model.safetensors"
    tensors = load_file(path)
    rows = 40
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = np.ascontiguousarray(tensors[name][:rows])
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 8)
    for work in (
        lambda: calibrate(source, tmp_path / "x.stats", samples=text, context=16),
        lambda: verify(source, source, text=text, context=16),
    ):
        with pytest.raises(InvalidInput) as caught:
            work()
        assert str(rows) in str(caught.value)
    assert not (tmp_path / "x.stats").exists()


class _Encoder:
    def encode(self, text: str) -> list[int]:
        return [1, 2, int(text)]


@pytest.mark.parametrize("wrong", [8, 9, 2**31, -1])
def test_the_check_is_where_texts_are_cut(wrong: int) -> None:
    cutter = Cutter(_Encoder(), 8, None, {}, None, rows=8, tokens=[f"t{n}" for n in range(10)])
    assert cutter.cut(Sample("a", "en", "prose", "7", None))[0].ids == (1, 2, 7)
    with pytest.raises(InvalidInput, match=f"sample a: .* {wrong}.* 8 rows"):
        cutter.cut(Sample("a", "en", "prose", str(wrong), None))
