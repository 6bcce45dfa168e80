"""AutoRound computes with our GPTQ folders what transformers does with the decoded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.conftest import Written
from tests.oracles.tool import Tool

pytestmark = pytest.mark.oracles


@pytest.mark.parametrize(
    ("source", "target"), [("builtin:zen-nano", "gptq:w4g128"), ("llama3", "gptq:w4g64")]
)
def test_it_computes_with_our_folders_what_we_decode(
    source: str, target: str, written: Written, auto_round: Tool, tmp_path: Path
) -> None:
    """In float16, whose rounding the bound leaves room for."""
    folder = written(source, target)
    kernels = auto_round("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    assert kernels.startswith("auto_round")
    divergence = ours.divergence(ours.logits(folder), np.load(tmp_path / "theirs.npy"))
    assert divergence.mean() < 1e-3  # 2e-5 was seen
