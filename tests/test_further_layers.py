"""Layers that predict further tokens: left out by name, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fp8_folders import make_fp8
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError, UnexpectedTensor
from zenconvert.model.target import Options

Made = Callable[[str], Path]
KEY = "num_nextn_predict_layers"


def with_further(source: Path, out: Path, count: int) -> Path:
    """A copy with the tensors of a layer behind the last, as releases have them."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    layer = {
        k.replace("layers.2.", "layers.3."): v.clone()
        for k, v in tensors.items()
        if "layers.2." in k
    }
    layer["model.layers.3.eh_proj.weight"] = torch.ones(256, 512, dtype=torch.bfloat16)
    layer["model.layers.3.enorm.weight"] = torch.ones(256, dtype=torch.bfloat16)
    save_file({**tensors, **layer}, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, KEY: count}))
    return out


def test_they_are_left_out_by_name(folder: Made, tmp_path: Path) -> None:
    """Of files that have no place for them here."""
    target = "gguf:bf16"
    (tmp_path / "more").mkdir()
    source = with_further(folder("glm4_moe"), tmp_path / "more" / folder("glm4_moe").name, 1)
    done = convert(source, tmp_path / "ours", target)
    assert [(fact.name, fact.value) for fact in done.plan.lost] == [(KEY, 1)]
    assert "further tokens (MTP)" in done.plan.lost[0].why
    with pytest.raises(PlanError, match=KEY):
        plan(source, target, exact=True)
    convert(folder("glm4_moe"), tmp_path / "without", target)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "without").read_bytes()


@pytest.mark.parametrize("target", ["hf:bf16", "gptq:w4g32", "awq:w4g32"])
def test_folders_keep_them_in_floats(target: str, folder: Made, tmp_path: Path) -> None:
    source = with_further(folder("glm4_moe"), tmp_path / "model", 1)
    done = convert(source, tmp_path / "ours", target)
    assert not done.plan.lost
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    kept = {name for name in before if name.startswith("model.layers.3.")}
    assert {name for name in after if name.startswith("model.layers.3.")} == kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config[KEY] == 1
    settings = json.dumps(config.get("quantization_config", {}))
    if target == "hf:bf16":
        assert done.plan.exact
        plan(source, target, exact=True)
    else:
        assert "eh_proj" in settings, settings
        assert "model.layers.3.mlp.experts.0.up_proj" in settings.replace("\\", ""), settings
    convert(tmp_path / "ours", tmp_path / "again", "hf:bf16")
    dropped = plan(tmp_path / "ours", "hf:bf16", options=Options(mtp="drop"))
    assert [fact.name for fact in dropped.lost] == [KEY]
    assert not [c for c in dropped.choices if c.name in kept]
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], before[name]) for name in kept)


@pytest.mark.parametrize("target", ["hf:f32", "gptq:w4g32"])
def test_those_in_8_bit_floats_are_decoded(target: str, folder: Made, tmp_path: Path) -> None:
    source = with_further(folder("deepseek_v3"), tmp_path / "model", 1)
    decoded = make_fp8(source, tmp_path / "fp8")
    stored = load_file(tmp_path / "fp8" / "model.safetensors")
    name = "model.layers.3.self_attn.kv_a_proj_with_mqa.weight"
    assert stored[name].dtype == torch.float8_e4m3fn
    done = convert(tmp_path / "fp8", tmp_path / "ours", target, allow_requantize=True)
    assert not done.plan.lost
    after = load_file(tmp_path / "ours" / "model.safetensors")
    kept = {name for name in decoded if name.startswith("model.layers.3.")}
    assert {name for name in after if name.startswith("model.layers.3.")} == kept
    for key in kept:
        dtype = torch.float32 if target == "hf:f32" else torch.bfloat16
        assert torch.equal(after[key], decoded[key].to(dtype)), key


def test_more_than_the_config_says_are_refused(folder: Made, tmp_path: Path) -> None:
    source = with_further(folder("glm4_moe"), tmp_path / "model", 0)
    with pytest.raises(UnexpectedTensor, match="MTP"):
        open_checkpoint(source)
