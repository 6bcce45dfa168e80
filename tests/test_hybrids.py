"""Models that have linear attention in most of their layers, and gated scores in the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.differential import runs
from tests.families import FAMILIES
from tests.oracles import converter
from tests.oracles.llama_quantize import load_imatrix, quantize
from tests.tiny import raw_model
from zenconvert import calibrate, convert, open_checkpoint, plan
from zenconvert.errors import InvalidInput, PlanError, Unsupported
from zenconvert.formats.gguf import container, mixtures
from zenconvert.model.architecture import for_model_type
from zenconvert.solve.calibration_texts import Calibrating

Made = Callable[[str], Path]
HYBRIDS = [name for name, family in FAMILIES.items() if "linear_num_key_heads" in family.config]
CHUNK = 64
"""Tokens that the delta rule is computed for at a time."""


@pytest.mark.parametrize("name", HYBRIDS)
def test_llamacpp_computes_the_same_before_at_and_past_a_chunk(
    name: str, short_folder: Made, tmp_path: Path
) -> None:
    source = short_folder(name)
    convert(source, tmp_path / "model.gguf", "gguf:f32")
    for length in (CHUNK - 1, CHUNK, 2 * CHUNK + 5):
        text = runs.ids(length, 3)
        expected = runs.in_transformers(source, text)
        found = runs.in_llamacpp(tmp_path / "model.gguf", text)
        assert np.abs(found - expected).max() < 1e-3 * expected.std(), length


@pytest.mark.parametrize("name", HYBRIDS)
def test_files_of_blocks_come_back_as_llamacpp_has_them(
    name: str, short_folder: Made, tmp_path: Path
) -> None:
    """Whatever stands in another order there; llama.cpp rounds what it multiplies blocks by."""
    convert(short_folder(name), tmp_path / "model.gguf", "gguf:q8_0")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:f32")
    text = runs.ids(24, 3)
    expected = runs.in_transformers(tmp_path / "back", text)
    found = runs.in_llamacpp(tmp_path / "model.gguf", text)
    assert np.linalg.norm(found - expected) < 0.3 * np.linalg.norm(expected)
    convert(tmp_path / "back", tmp_path / "again.gguf", "gguf:f32")
    found = runs.in_llamacpp(tmp_path / "again.gguf", text)
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_importance_is_that_of_the_columns_in_the_file(
    name: str, short_folder: Made, tmp_path: Path
) -> None:
    """llama-quantize makes the same file with our importance matrix, and so do statistics."""
    source, matrix = short_folder(name), tmp_path / "imatrix.gguf"
    calibrate(
        source, tmp_path / "x.stats", imatrix=matrix, languages=["en"], tokens_per_language=200,
        context=64,
    )  # fmt: skip
    convert(source, tmp_path / "floats.gguf", "gguf:bf16")
    quantize(
        tmp_path / "floats.gguf", tmp_path / "theirs.gguf", mixtures.FILE_TYPES["q4_k_m"],
        importance=load_imatrix(matrix),
    )  # fmt: skip
    given: tuple[dict[str, Any], ...] = (
        {"importance": matrix},
        {"statistics": tmp_path / "x.stats"},
    )
    for number, known in enumerate(given):
        convert(source, tmp_path / f"{number}.gguf", "gguf:q4_k_m", **known)
        ours = container.read(tmp_path / f"{number}.gguf")
        theirs = container.read(tmp_path / "theirs.gguf")
        for tensor, info in theirs.tensors.items():
            assert data_of(ours.tensors[tensor]) == data_of(info), tensor


def data_of(info: container.TensorInfo) -> bytes:
    """The bytes of a tensor of a file."""
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.nbytes)


@pytest.mark.parametrize("target", ["gguf:q4_k_m", "gguf:q4_0"])
def test_solved_files_compute_much_the_same(
    target: str, short_folder: Made, tmp_path: Path
) -> None:
    """What reads tiled heads is rounded: its columns are no groups of the order it is solved in."""
    source = short_folder("qwen3_5")
    samples = Calibrating(languages=["en"], tokens_per_language=200, context=64)
    done = convert(source, tmp_path / "model.gguf", target, calibrating=samples, solver="gptq")
    assert {"layers.0.linear.q.weight", "layers.0.linear.v.1.weight"} <= set(done.modules)
    assert "layers.0.linear.o.weight" not in done.modules
    convert(tmp_path / "model.gguf", tmp_path / "decoded", "hf:f32")
    text = runs.ids(24, 3)
    found, expected = (runs.in_transformers(p, text) for p in (tmp_path / "decoded", source))
    assert np.linalg.norm(found - expected) < 0.9 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_predicts_further_tokens_is_left_out_by_name(
    name: str, short_folder: Made, tmp_path: Path
) -> None:
    source = tmp_path / "more" / short_folder(name).name
    shutil.copytree(short_folder(name), source)
    tensors = load_file(source / "model.safetensors")
    further = {f"mtp.{part}.weight": torch.ones(256, dtype=torch.bfloat16) for part in "ab"}
    save_file({**tensors, **further}, source / "model.safetensors", {"format": "pt"})
    done = convert(source, tmp_path / "ours.gguf", "gguf:bf16")
    (lost,) = done.plan.lost
    assert "2 tensors are left out" in lost.why
    with pytest.raises(PlanError, match=lost.name):
        plan(source, "gguf:bf16", exact=True)
    convert(short_folder(name), tmp_path / "without.gguf", "gguf:bf16")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


@pytest.mark.parametrize("target", ["gptq:w4g32", "awq:w4g32"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_what_is_recurrent_stays_in_floats(
    name: str, target: str, short_folder: Made, tmp_path: Path
) -> None:
    """As GPTQModel has it; the projections of one tensor stay in one."""
    convert(short_folder(name), tmp_path / "packed", target)
    before = load_file(short_folder(name) / "model.safetensors")
    after = load_file(tmp_path / "packed" / "model.safetensors")
    packed = {key.removesuffix(".qweight") for key in after if key.endswith(".qweight")}
    of_linear = {m.rpartition(".")[2] for m in packed if ".linear_attn." in m}
    parts = {"in_proj_qkvz"} if name == "qwen3_next" else {"in_proj_qkv", "in_proj_z"}
    assert of_linear == {*parts, "out_proj"}
    for key, values in before.items():
        if key.removesuffix(".weight") not in packed and ".experts." not in key:
            assert torch.equal(after[key].to(values.dtype), values), key


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_by_a_period_or_a_list_are_the_same(name: str) -> None:
    config = {k: v for k, v in FAMILIES[name].config.items() if k != "layer_types"}
    architecture = for_model_type(config["model_type"])
    kinds = (["linear_attention"] * 3 + ["full_attention"]) * 2
    period = architecture.sizes({**config, "full_attention_interval": 4}, where="test")
    assert period.linear_layers == (0, 1, 2, 4, 5, 6)
    listed = architecture.sizes({**config, "layer_types": kinds}, where="test")
    assert listed.linear_layers == period.linear_layers
    for wrong in (kinds[1:], ["sliding_attention", *kinds[1:]], "linear_attention"):
        with pytest.raises(InvalidInput, match="layer_types should name 8 layers"):
            architecture.sizes({**config, "layer_types": wrong}, where="test")
    with pytest.raises(InvalidInput, match="no multiple of the 5 heads of keys"):
        architecture.sizes({**config, "linear_num_key_heads": 5}, where="test")


@pytest.mark.parametrize("name", HYBRIDS)
def test_heads_of_values_of_another_size_are_refused_for_llamacpp(
    name: str, short_folder: Made, tmp_path: Path
) -> None:
    config = json.loads((short_folder(name) / "config.json").read_text())
    shutil.copytree(short_folder(name), tmp_path / "model")
    raw_model(tmp_path / "model", config, linear_value_head_dim=64)
    with pytest.raises(PlanError, match=r"linear_value_head_dim is 64: .* as those of keys, 128"):
        plan(tmp_path / "model", "gguf:bf16")
    assert plan(tmp_path / "model", "hf:bf16").exact


def test_decay_that_cannot_come_back_is_named(short_folder: Made, tmp_path: Path) -> None:
    name = HYBRIDS[0]
    shutil.copytree(short_folder(name), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.0.linear_attn.A_log"][1] = 1e-7
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    found = [s for s in plan(tmp_path / "model", "gguf:f32").steps if not s.exact]
    assert [(s.target, s.why.partition(";")[0]) for s in found] == [
        ("blk.0.ssm_a", "-exp(w) is rounded to f32: 1 of 4 numbers cannot come back")
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("mlp_only_layers", [1]), ("decoder_sparse_step", 2), ("attention_bias", True)],
)
def test_models_with_other_modules_are_refused(key: str, value: Any) -> None:
    config = {**FAMILIES["qwen3_next"].config, key: value}
    with pytest.raises(Unsupported, match=f"{key} is .* are known with"):
        for_model_type("qwen3_next").sizes(config, where="test")


def test_files_that_say_only_the_period_are_read(short_folder: Made, tmp_path: Path) -> None:
    """As those of older converters."""
    convert(short_folder("qwen3_next"), tmp_path / "model.gguf", "gguf:bf16")
    expected = open_checkpoint(tmp_path / "model.gguf").hyperparameters.linear_layers
    data = (tmp_path / "model.gguf").read_bytes()
    key = b"qwen3next.attention.recurrent_layers"
    assert data[:4] == container.MAGIC
    (tmp_path / "model.gguf").write_bytes(data.replace(key, key[:-6] + b"_other"))
    opened = open_checkpoint(tmp_path / "model.gguf")
    assert opened.hyperparameters.linear_layers == expected == (0, 1, 2)


def test_dimensions_of_positions_that_llamacpp_turns_otherwise_are_refused(
    short_folder: Made, tmp_path: Path
) -> None:
    """It leaves channels that no section covers at the beginning of the text."""
    shutil.copytree(short_folder("qwen3_5"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["rope_parameters"]["mrope_section"] = [2, 1, 1]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=r"mrope_section is \[2, 1, 1\]: .* all of 8 pairs"):
        plan(tmp_path / "model", "gguf:bf16")
    assert plan(tmp_path / "model", "gptq:w4g32").facts == ()


def test_files_of_the_converter_with_a_layer_that_predicts_further_tokens(
    short_folder: Made, tmp_path: Path
) -> None:
    """As it makes them unless it is told otherwise: that layer is left out by name."""
    source = tmp_path / "more" / "tiny"
    shutil.copytree(short_folder("qwen3_5"), source)
    tensors = load_file(source / "model.safetensors")
    further = {
        key.replace("model.layers.3.", "mtp.layers.0."): values.clone()
        for key, values in tensors.items()
        if key.startswith("model.layers.3.")
    }
    norm = torch.ones(256, dtype=torch.bfloat16)
    further |= {f"mtp.{n}.weight": norm.clone() for n in ("norm", "pre_fc_norm_embedding")}
    further |= {"mtp.pre_fc_norm_hidden.weight": norm, "mtp.fc.weight": norm.repeat(256, 2)}
    save_file({**tensors, **further}, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mtp_num_hidden_layers": 1}))
    with_layer = converter.convert(source, tmp_path / "with.gguf", "bf16")
    without = converter.convert(source, tmp_path / "without.gguf", "bf16", "qwen2", "--no-mtp")
    opened = open_checkpoint(with_layer)
    assert (opened.hyperparameters.layers, opened.further) == (4, len(further))
    for target in ("gguf:q8_0", "hf:bf16"):
        (lost,) = plan(with_layer, target).lost
        assert lost.name == "mtp_num_hidden_layers"
        with pytest.raises(PlanError, match="15 tensors are left out"):
            plan(with_layer, target, exact=True)
    convert(with_layer, tmp_path / "a.gguf", "gguf:q8_0")
    convert(without, tmp_path / "b.gguf", "gguf:q8_0")
    text = runs.ids(12, 3)
    found, expected = (runs.in_llamacpp(tmp_path / f"{n}.gguf", text) for n in "ab")
    np.testing.assert_array_equal(found, expected)
