"""Wrong tables are caught by what the tests of families compare, whichever fact is wrong.

Each fault is one that our own reading and writing would not notice, as both go by the table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.differential import runs
from tests.families import FAMILIES
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert
from zenconvert.model import architecture as arch

TEXT = runs.ids(48, 11)
PAIRS = 'rope_pairs = ["layers.{layer}.attn.q", "layers.{layer}.attn.k"]'
FAULTS = {
    "a norm without its 1": ("gemma2", "gemma2.toml", '"layers.{layer}.ffn_norm",\n', "\n"),
    "a scale that is missing": (
        "gemma2", "gemma2.toml", 'embedding_scale = "sqrt(hidden)"', 'embedding_scale = "1"',
    ),
    "rotations of other pairs": ("smollm3", "llama.toml", PAIRS, "rope_pairs = []"),
    "a window in other layers": (
        "gemma2", "gemma2.toml", "window_period = 2\nnorm", "window_period = 3\nnorm",
    ),
}  # fmt: skip


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the tables that the program reads; ``forget`` has to follow a change."""
    copy = tmp_path / "architectures"
    shutil.copytree(Path(arch.__file__).parents[1] / "architectures", copy)
    monkeypatch.setattr(arch, "_FOLDER", copy)
    forget()
    yield copy
    monkeypatch.undo()
    forget()


def forget() -> None:
    """Tables are read again."""
    arch._families.cache_clear()
    arch._wrappers.cache_clear()


def gaps(source: Path, tmp_path: Path, limit: float) -> dict[str, float]:
    """Runtime → how far its logits are from transformers', in limits of the family."""
    expected = runs.in_transformers(source, TEXT)
    convert(source, tmp_path / "out.gguf", "gguf:f32", force=True)
    convert(source, tmp_path / "onnx", "onnx:f32", force=True)
    found = {
        "llama.cpp": (runs.in_llamacpp(tmp_path / "out.gguf", TEXT), limit),
        "onnxruntime": (runs.in_onnxruntime(tmp_path / "onnx", TEXT), 1e-3),
    }
    return {
        name: float(np.abs(logits - expected).max() / expected.std()) / most
        for name, (logits, most) in found.items()
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_table_is_caught(fault: str, tables: Path, tmp_path: Path) -> None:
    name, table, right, wrong = FAULTS[fault]
    family, folder = FAMILIES[name], tmp_path / "model"
    folder.mkdir()
    vocab = MAKERS[family.tokenizer](folder)
    source = raw_model(
        folder, family.config, vocab_size=vocab, bos_token_id=1, eos_token_id=2, biases=True
    )
    path = tables / table
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    forget()
    found = gaps(source, tmp_path, family.llamacpp)
    assert max(found.values()) > 5, found
