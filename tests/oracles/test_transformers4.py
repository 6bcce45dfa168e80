"""transformers 4.57, beside the 5 that computes here, runs the same folders to the same logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from tests.families import FAMILIES, SHALLOW
from tests.oracles import ours
from tests.oracles.tool import Tool
from zenconvert import convert, plan
from zenconvert.errors import PlanError

pytestmark = pytest.mark.oracles

Made = Callable[[str], Path]
ONLY_IN_5 = {
    "gemma4_text", "glm4_moe_lite", "minimax_m2", "ministral3", "qwen3_5_moe_text", "qwen3_5_text",
}  # fmt: skip
"""Model types that transformers 4.57 does not have."""
OTHERWISE = {"deepseek_v2"}
"""Model types whose scores it does not multiply by what follows from ``mscale_all_dim``."""
LEFT = ONLY_IN_5 | OTHERWISE
SAME = [name for name in SHALLOW if FAMILIES[name].config["model_type"] not in LEFT]


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


SCALED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6}
PLAIN = {"rope_type": "default", "rope_theta": 2e6}
KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq")


@pytest.fixture
def spelled(folder: Made, tmp_path: Path) -> Callable[[str, dict[str, Any]], Path]:
    """(family, rope_parameters) → its folder, whose config says of rotations these alone."""

    def made(name: str, parameters: dict[str, Any]) -> Path:
        shutil.copytree(folder(name), tmp_path / "source")
        config = json.loads((tmp_path / "source" / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in KEYS}
        text = json.dumps({**kept, "rope_parameters": parameters})
        (tmp_path / "source" / "config.json").write_text(text)
        return tmp_path / "source"

    return made


def kinds(folder: Path) -> dict[str, Any]:
    """Rotations of both kinds of layers in transformers 5."""
    found = AutoConfig.from_pretrained(folder).rope_parameters
    return {kind: found[kind] for kind in ("full_attention", "sliding_attention")}


@pytest.mark.parametrize("parameters", [SCALED, PLAIN], ids=["scaled", "plain"])
@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_rotations_of_no_kind_of_layers_stay_what_both_leave_out(
    name: str,
    parameters: dict[str, Any],
    spelled: Callable[[str, dict[str, Any]], Path],
    transformers4: Tool,
    tmp_path: Path,
) -> None:
    source, made = spelled(name, parameters), tmp_path / "made"
    convert(source, made, "hf:bf16")
    assert kinds(made) == kinds(source)
    assert kinds(made)["full_attention"]["rope_theta"] != parameters["rope_theta"]
    assert transformers4("rotations", folder=made) == transformers4("rotations", folder=source)
    assert json.loads((made / "config.json").read_text())["rope_parameters"] == parameters
    with pytest.raises(PlanError, match="full_attention and sliding_attention"):
        plan(source, "gguf:bf16")


@pytest.mark.parametrize("full", [SCALED, PLAIN], ids=["scaled", "plain"])
@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
def test_rotations_of_kinds_of_layers_are_those_of_both(
    name: str,
    full: dict[str, Any],
    spelled: Callable[[str, dict[str, Any]], Path],
    transformers4: Tool,
    tmp_path: Path,
) -> None:
    """Where transformers 4 has a base of layers that slide, it is another one."""
    theta = 2e4 if name == "gemma3" else full["rope_theta"]
    slides = {"rope_type": "default", "rope_theta": theta}
    source = spelled(name, {"full_attention": full, "sliding_attention": slides})
    convert(source, tmp_path / "made", "hf:bf16")
    assert kinds(tmp_path / "made") == {"full_attention": full, "sliding_attention": slides}
    found = transformers4("rotations", folder=tmp_path / "made")
    scaling = {key: value for key, value in full.items() if key != "rope_theta"}
    expected = None if full is PLAIN else scaling
    assert (found["rope_theta"], found["rope_scaling"]) == (full["rope_theta"], expected)
    assert name != "gemma3" or found["rope_local_base_freq"] == theta
    convert(source, tmp_path / "model.gguf", "gguf:bf16")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:bf16")
    assert kinds(tmp_path / "back") == kinds(tmp_path / "made")
    assert transformers4("rotations", folder=tmp_path / "back") == found
