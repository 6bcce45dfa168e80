"""Experts in MXFP4: decoded as transformers does, and moved into GGUF without being decoded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.differential import runs
from tests.families import FAMILIES
from tests.mxfp4_folders import SETTINGS, in_blocks
from tests.oracles import converter
from tests.test_llamacpp_parity import assert_same_file
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, Unsupported, UsageError
from zenconvert.planning.recoding import logical_rows
from zenconvert.write import one_pass

Made = Callable[[str], Path]
TEXT = runs.ids(48, 11)


@pytest.fixture(scope="module")
def blocks(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_blocks(folder("gpt_oss"), tmp_path_factory.mktemp("blocks") / "tiny-gpt_oss")


def test_floats_are_those_of_transformers(blocks: Path, tmp_path: Path) -> None:
    done = convert(blocks, tmp_path / "floats", "hf:bf16")
    assert done.plan.exact
    stored, found = (
        load_file(blocks / "model.safetensors"),
        load_file(tmp_path / "floats" / "model.safetensors"),
    )
    stacks = [name.removesuffix("_blocks") for name in stored if name.endswith("_blocks")]
    assert len(stacks) == 8
    for name in stacks:
        expected = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        assert torch.equal(found[name], expected), name
    assert not (tmp_path / "floats" / "config.json").read_text().count("quant")


@pytest.mark.parametrize("file_type", ["bf16", "f32"])
def test_files_are_the_converters(file_type: str, blocks: Path, tmp_path: Path) -> None:
    theirs = converter.convert(blocks, tmp_path / "theirs.gguf", file_type, FAMILIES["gpt_oss"].pre)
    done = convert(blocks, tmp_path / "ours.gguf", f"gguf:{file_type}")
    steps = [step for step in done.plan.steps if "_exps.weight" in step.target]
    assert {(step.action, str(step.to)) for step in steps} == {("copy", "mxfp4")}
    assert_same_file(tmp_path / "ours.gguf", theirs)


def test_llamacpp_computes_what_transformers_does_and_the_way_back_loses_nothing(
    blocks: Path, tmp_path: Path
) -> None:
    """From the folder to GGUF and back, and once more: the same bytes, and the same settings."""
    convert(blocks, tmp_path / "first.gguf", "gguf:f32")
    expected = runs.in_transformers(blocks, TEXT)
    in_eights = runs.in_llamacpp(tmp_path / "first.gguf", TEXT)  # as it multiplies blocks
    assert np.linalg.norm(in_eights - expected) < 0.3 * np.linalg.norm(expected)
    convert(blocks, tmp_path / "floats", "hf:f32")
    convert(tmp_path / "floats", tmp_path / "floats.gguf", "gguf:f32")
    gap = np.abs(runs.in_llamacpp(tmp_path / "floats.gguf", TEXT) - expected).max()
    assert gap < FAMILIES["gpt_oss"].llamacpp * expected.std()
    done = convert(tmp_path / "first.gguf", tmp_path / "back", "hf:mxfp4")
    steps = [step for step in done.plan.steps if str(step.to) == "mxfp4"]
    assert {step.action for step in steps} == {"copy"}
    before, after = (load_file(path / "model.safetensors") for path in (blocks, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    given, made = (
        json.loads((path / "config.json").read_text())["quantization_config"]
        for path in (blocks, tmp_path / "back")
    )
    assert made == given
    np.testing.assert_array_equal(runs.in_transformers(tmp_path / "back", TEXT), expected)
    convert(tmp_path / "back", tmp_path / "second.gguf", "gguf:f32")
    assert (tmp_path / "second.gguf").read_bytes() == (tmp_path / "first.gguf").read_bytes()


def test_graphs_have_the_blocks_on_a_grid_of_eight_bits(blocks: Path, tmp_path: Path) -> None:
    done = convert(blocks, tmp_path / "graph", "onnx:own-acc0")
    steps = [step for step in done.plan.steps if ".experts." in step.target and step.shape[1:]]
    assert {(step.action, step.exact) for step in steps} == {("repack", True)}
    expected = runs.in_transformers(blocks, TEXT)
    gap = np.abs(runs.in_onnxruntime(tmp_path / "graph", TEXT) - expected).max()
    assert gap < 1e-3 * expected.std()


def test_standard_operators_take_no_sinks(folder: Made) -> None:
    with pytest.raises(Unsupported, match="choose a type without -standard"):
        plan(folder("gpt_oss"), "onnx:f32-standard")


def test_small_slabs_give_the_same_bytes(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder to a folder; slabs end within words of rows."""
    monkeypatch.setattr(one_pass, "SLAB_ELEMENTS", 5000)
    assert convert(blocks, tmp_path / "again", "hf:mxfp4", threads=3).plan.exact
    before, after = (load_file(path / "model.safetensors") for path in (blocks, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_floats_are_rounded_by_ggmls_rule(folder: Made, tmp_path: Path) -> None:
    """transformers reads what is written; libggml is held against these blocks elsewhere."""
    done = convert(folder("gpt_oss"), tmp_path / "rounded", "hf:mxfp4")
    assert not done.plan.exact
    convert(folder("gpt_oss"), tmp_path / "rounded.gguf", "gguf:mxfp4_moe")
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("rounded", "rounded.gguf"))
    name = "layers.1.moe.4.up.weight"
    rows = [
        logical_rows.in_slabs(one.tensors[name], 32)(0, one.tensors[name].rows)
        for one in (ours, theirs)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    found = runs.in_transformers(tmp_path / "rounded", TEXT)
    convert(tmp_path / "rounded", tmp_path / "decoded", "hf:f32")
    np.testing.assert_array_equal(runs.in_transformers(tmp_path / "decoded", TEXT), found)


def test_families_without_such_stacks_are_refused(folder: Made) -> None:
    with pytest.raises(UsageError, match="families whose files have experts in it"):
        plan(folder("qwen3_moe"), "hf:mxfp4")


def test_plans_read_headers_alone(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release has gigabytes of exponents."""

    def read(*given: object) -> None:
        raise AssertionError("a plan reads tensors")

    monkeypatch.setattr("zenconvert.planning.reading._read", read)
    assert plan(blocks, "hf:mxfp4").exact
    assert plan(blocks, "gguf:bf16").steps


def test_wrong_folders_are_refused(blocks: Path, folder: Made, tmp_path: Path) -> None:
    tensors = load_file(blocks / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    scales, stored = tensors[f"{name}_scales"], tensors[f"{name}_blocks"]
    broken = scales.clone()
    broken[2, 5, 1] = 255
    for number, (changed, error, told) in enumerate(
        (
            ({f"{name}_scales": None}, MissingTensor, "down_proj_scales is missing"),
            ({f"{name}_blocks": None}, MissingTensor, "down_proj_blocks is missing"),
            ({f"{name}_scales": scales[:, :-1].contiguous()}, CorruptFile, "calls for u8"),
            ({f"{name}_blocks": stored.to(torch.int16)}, CorruptFile, "is i16"),
            ({f"{name}_scales": broken}, InvalidInput, "is 255, which is no number"),
            ({name: torch.zeros(6, 128, 256)}, CorruptFile, "in floats, too"),
        )
    ):
        place = tmp_path / str(number)
        shutil.copytree(blocks, place)
        wanted = {k: v for k, v in {**tensors, **changed}.items() if v is not None}
        save_file(wanted, place / "model.safetensors", {"format": "pt"})
        with pytest.raises(error, match=told):
            convert(place, tmp_path / f"{number}.gguf", "gguf:bf16")
    place = tmp_path / "floats"
    shutil.copytree(folder("gpt_oss"), place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": SETTINGS}))
    with pytest.raises(InvalidInput, match="no expert is in blocks"):
        open_checkpoint(place)
