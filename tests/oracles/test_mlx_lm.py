"""mlx-lm computes with our HF and AWQ folders what transformers does with the decoded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.conftest import Written
from tests.oracles.tool import Tool

pytestmark = pytest.mark.oracles


@pytest.mark.parametrize(
    ("source", "target", "bound"),
    [
        ("builtin:zen-nano", "hf:f32", 1e-8),  # 1e-11 was seen
        ("llama3", "hf:f32", 1e-8),
        ("mixtral", "hf:f32", 1e-8),
        ("builtin:zen-nano", "hf:bf16", 2e-2),
        ("builtin:zen-nano", "awq:w4g128", 2e-2),
        ("llama3", "awq:w4g64", 2e-2),
    ],
)
def test_it_computes_with_our_folders_what_we_decode(
    source: str, target: str, bound: float, written: Written, mlx_lm: Tool, tmp_path: Path
) -> None:
    """It computes in the type of the folder, whose rounding the bounds leave room for."""
    folder = written(source, target)
    mlx_lm("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    divergence = ours.divergence(ours.logits(folder), np.load(tmp_path / "theirs.npy"))
    assert divergence.mean() < bound


def test_it_takes_no_gptq_folder(written: Written, mlx_lm: Tool) -> None:
    """Even without act-order: every file of AutoGPTQ's kind lists the groups of columns."""
    assert "g_idx" in mlx_lm("refused", folder=written("llama3", "gptq:w4g128"))
