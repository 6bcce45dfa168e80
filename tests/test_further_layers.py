"""Layers that predict further tokens: left out by name, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError, UnexpectedTensor

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


@pytest.mark.parametrize("target", ["gguf:bf16", "hf:bf16"])
def test_they_are_left_out_by_name(target: str, folder: Made, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    source = with_further(folder("glm4_moe"), tmp_path / "more" / folder("glm4_moe").name, 1)
    done = convert(source, tmp_path / "ours", target)
    assert [(fact.name, fact.value) for fact in done.plan.lost] == [(KEY, 1)]
    assert "further tokens (MTP)" in done.plan.lost[0].why
    with pytest.raises(PlanError, match=KEY):
        plan(source, target, exact=True)
    convert(folder("glm4_moe"), tmp_path / "without", target)
    ours, theirs = (tmp_path / name for name in ("ours", "without"))
    for name in ("model.safetensors", "config.json") if target.startswith("hf") else ("",):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_more_than_the_config_says_are_refused(folder: Made, tmp_path: Path) -> None:
    source = with_further(folder("glm4_moe"), tmp_path / "model", 0)
    with pytest.raises(UnexpectedTensor, match="MTP"):
        open_checkpoint(source)
