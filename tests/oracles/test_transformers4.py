"""transformers 4.57, beside the 5 that computes here, runs the same folders to the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.families import FAMILIES, SHALLOW
from tests.oracles import ours
from tests.oracles.tool import Tool
from zenconvert import convert

pytestmark = pytest.mark.oracles

Made = Callable[[str], Path]
ONLY_IN_5 = {"gemma4_text", "ministral3"}
"""Model types that transformers 4.57 does not have."""
SAME = [name for name in SHALLOW if FAMILIES[name].config["model_type"] not in ONLY_IN_5]


def test_it_has_all_other_families(transformers4: Tool) -> None:
    types = {family.config["model_type"] for family in FAMILIES.values()}
    assert types - set(transformers4("types")) == ONLY_IN_5


@pytest.mark.parametrize("name", SAME)
def test_released_spellings_and_what_we_write_compute_the_same(
    name: str, folder: Made, transformers4: Tool, tmp_path: Path
) -> None:
    """The config as it is released, and the one that comes back from GGUF."""
    source = folder(name)
    convert(source, tmp_path / "model.gguf", "gguf:bf16")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:bf16")
    expected = ours.logits(source)
    for made in (source, tmp_path / "back"):
        out = tmp_path / "theirs.npy"
        assert transformers4("logits", folder=made, ids=ours.IDS, out=out) == []
        assert np.abs(np.load(out) - expected).max() < 1e-4 * expected.std(), made.name
