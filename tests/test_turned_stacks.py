"""Experts that files have in one tensor, turned, with the outputs of two modules in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.safety.outputs import everything
from zenconvert import convert, open_checkpoint
from zenconvert.model import pieces
from zenconvert.planning.recoding import logical_rows
from zenconvert.write import one_pass, place

Made = Callable[[str], Path]


def test_modules_are_those_that_transformers_computes_with(folder: Made) -> None:
    """What the whole model's experts give for one unit vector after the other."""
    checkpoint = open_checkpoint(folder("gpt_oss"))
    model = AutoModelForCausalLM.from_pretrained(folder("gpt_oss"), dtype=torch.float32)
    experts = model.model.layers[1].mlp.experts
    gate_up = (torch.eye(256) @ experts.gate_up_proj[4]).T.detach().numpy()
    for name, expected in {
        "gate": gate_up[::2],
        "up": gate_up[1::2],
        "down": (torch.eye(128) @ experts.down_proj[4]).T.detach().numpy(),
    }.items():
        tensor = checkpoint.tensors[f"layers.1.moe.4.{name}.weight"]
        found = logical_rows.numbers(logical_rows.in_slabs(tensor, 32)(0, tensor.rows), tensor)
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("band", [(1, 1), (5000, 64)])
def test_small_bands_give_the_same_bytes(
    band: tuple[int, int], folder: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "PACKED_ROWS", 32)
    monkeypatch.setattr(one_pass, "SLAB_ELEMENTS", 4000)
    monkeypatch.setattr(pieces, "BAND_BYTES", band[0])
    monkeypatch.setattr(pieces, "RUN_BYTES", band[1])
    convert(folder("gpt_oss"), tmp_path / "again", "hf:bf16", threads=3)
    before = load_file(folder("gpt_oss") / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_is_gone_on_with(
    folder: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One module of a pair may be whole in the file, and the other not begun."""
    convert(folder("gpt_oss"), tmp_path / "whole", "hf:f32")
    monkeypatch.setattr(one_pass, "REMEMBER_SECONDS", 0)
    stops, out = iter((3, 20, 31, 8)), tmp_path / "stopped"
    for stop in stops:
        left = stop

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(folder("gpt_oss"), out, "hf:f32", threads=1, progress=progress)
        assert not out.exists()
    convert(folder("gpt_oss"), out, "hf:f32")
    assert everything(out) == everything(tmp_path / "whole")
