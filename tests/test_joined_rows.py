"""Tensors of files that hold the rows of several modules: cut apart, and put together again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.differential import packed, runs
from tests.families import FAMILIES
from tests.oracles import converter
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError
from zenconvert.formats.gguf import container
from zenconvert.model.pieces import Piece
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine


@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_files_of_the_converter_with_joined_rows_are_read(name: str, tmp_path: Path) -> None:
    """q, k and v in one tensor, with rotated pairs and with biases."""
    family, source = FAMILIES[name], tmp_path / "model"
    source.mkdir()
    vocab = MAKERS[family.tokenizer](source)
    raw_model(source, family.config, vocab_size=vocab, biases=True)
    file = converter.convert(source, tmp_path / "joined.gguf", "bf16", family.pre, "--fuse-qkv")
    assert "blk.1.attn_qkv.weight" in container.read(file).tensors
    convert(file, tmp_path / "back", "hf:bf16")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert values.tobytes() == after[key].tobytes(), key
    expected = runs.in_transformers(source, text := runs.ids(24, 5))
    np.testing.assert_array_equal(runs.in_transformers(tmp_path / "back", text), expected)


def phi(folder: Path, name: str = "phi", **changes: Any) -> Path:
    """A random float32 model whose files have joined rows, with a byte-level tokenizer."""
    side = folder.with_name(f"{folder.name}-tokenizer")
    runs.tokenizer(side)
    return runs.write_model(
        folder, {**FAMILIES[name].config, "vocab_size": 320, **changes}, side, 3
    )


@pytest.mark.parametrize("target", ["gptq:w4g32", "gptq:w3g64-asym", "awq:w4g32", "awq:w4g32-gemv"])
def test_packed_folders_have_joined_rows_as_others_read_them(target: str, tmp_path: Path) -> None:
    """Every product is one module, as transformers and vLLM have it; decoded bit by bit."""
    source = phi(tmp_path / "model")
    convert(source, tmp_path / "packed", target)
    found = load_file(tmp_path / "packed" / "model.safetensors")
    prefix = "model.layers.0"
    modules = {n.removesuffix(".qweight") for n in found if n.endswith("qweight")}
    assert {m for m in modules if m.startswith(prefix)} == {
        f"{prefix}.self_attn.qkv_proj", f"{prefix}.self_attn.o_proj",
        f"{prefix}.mlp.gate_up_proj", f"{prefix}.mlp.down_proj",
    }  # fmt: skip
    decoded = packed.decoded(tmp_path / "packed", tmp_path / "theirs", modules)
    convert(tmp_path / "packed", tmp_path / "ours", "hf:f32")
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "ours", decoded))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_array_equal(ours[key], values, err_msg=key)
    other = "awq:w4g32" if target.endswith("gemv") else target
    convert(tmp_path / "packed", tmp_path / "again", other)
    if other == target:
        again = load_file(tmp_path / "again" / "model.safetensors")
        assert all(np.array_equal(values, again[key]) for key, values in found.items())


@pytest.mark.parametrize(
    ("target", "changes", "reason"),
    [
        ("gptq:w4g32-actorder", {}, "which have no one order"),
        (
            "gptq:w4g32",
            {"num_attention_heads": 16, "num_key_value_heads": 1, "partial_rotary_factor": 1.0},
            "do not begin at whole words",
        ),
    ],
)
def test_rows_that_cannot_be_joined_are_refused(
    target: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=reason):
        plan(phi(tmp_path / "model", **changes), target)


@pytest.mark.parametrize("name", ["phi", "phi_longrope"])
def test_the_walk_sees_single_modules_and_computes_what_transformers_does(
    name: str, tmp_path: Path
) -> None:
    """Texts on both sides of the original context, which change how others of a batch rotate."""
    source = phi(tmp_path / "model", name)
    texts = [runs.ids(length, seed) for seed, length in enumerate((300, 40, 260, 256))]
    windows = [Window(str(n), "und", tuple(ids)) for n, ids in enumerate(texts)]
    checkpoint = open_checkpoint(source)
    engine = TorchEngine(checkpoint, windows, device="cpu", progress=lambda done, total: None)
    for number, ids in enumerate(texts):
        expected = runs.in_transformers(source, ids)
        found = engine.logits(number, 0, len(ids)).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("length", [256, 300])
def test_llamacpp_rotates_long_texts_as_transformers_does(length: int, tmp_path: Path) -> None:
    """At the original context and past it, where other factors hold."""
    source, text = phi(tmp_path / "model", "phi_longrope"), runs.ids(length, 1)
    convert(source, tmp_path / "model.gguf", "gguf:f32")
    expected = runs.in_transformers(source, text)
    gap = np.abs(runs.in_llamacpp(tmp_path / "model.gguf", text) - expected).max()
    assert gap < 1e-3 * expected.std()


def test_factors_and_amplitude_of_longrope_come_back_from_gguf(tmp_path: Path) -> None:
    scaling = {**FAMILIES["phi_longrope"].config["rope_scaling"], "attention_factor": 1.25}
    source, text = phi(tmp_path / "model", "phi_longrope", rope_scaling=scaling), runs.ids(300, 1)
    convert(source, tmp_path / "model.gguf", "gguf:f32")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:f32")
    found = json.loads((tmp_path / "back" / "config.json").read_text())
    assert found["rope_scaling"] == scaling
    assert found["original_max_position_embeddings"] == 256
    assert found["sliding_window"] == 262144
    expected = runs.in_transformers(source, text)
    np.testing.assert_array_equal(runs.in_transformers(tmp_path / "back", text), expected)
    gap = np.abs(runs.in_llamacpp(tmp_path / "model.gguf", text) - expected).max()
    assert gap < 1e-3 * expected.std()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("stride", [0, 4096])
def test_rows_of_a_piece_are_where_its_array_has_them(axis: int, stride: int) -> None:
    """Against numpy's own view of the whole array."""
    shape = (64, 24) if axis == 0 else (24, 64)
    piece, line = Piece("codes", "i32", shape, axis=axis, items=16), 4 * shape[1]
    memory = np.arange((stride or line) * shape[0] + line, dtype=np.int64).astype(np.uint8)
    whole = np.lib.stride_tricks.as_strided(memory, (shape[0], line), (stride or line, 1))
    found = b"".join(memory[a : a + n].tobytes() for a, n in piece.extents(32, 96, stride))
    expected = whole[16:48] if axis == 0 else whole[:, 4 * 16 : 4 * 48]
    assert found == expected.tobytes()
