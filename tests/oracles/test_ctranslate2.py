"""CTranslate2 computes with our HF folders what transformers does with the decoded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.conftest import Written
from tests.oracles.tool import Tool

pytestmark = pytest.mark.oracles


@pytest.mark.parametrize(
    ("source", "bound"),
    [
        ("builtin:zen-nano", 1e-8),  # 1e-11 was seen
        ("mistral", 1e-8),
        ("llama3", 1e-4),  # 4e-6, growing with the position: its rope scaling is its own
    ],
)
@pytest.mark.parametrize("target", ["hf:f32", "hf:bf16"])
def test_it_computes_with_our_folders_what_we_decode(
    source: str, bound: float, target: str, written: Written, ctranslate2: Tool, tmp_path: Path
) -> None:
    """It widens every type to the one that it computes in, here float32."""
    folder = written(source, target)
    ctranslate2("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    divergence = ours.divergence(ours.logits(folder), np.load(tmp_path / "theirs.npy"))
    assert divergence.mean() < bound
