"""Types of very few bits are planned with importance weights only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.conversion import run
from zenconvert.errors import PlanError
from zenconvert.model.target import Target
from zenconvert.planning.plan import Plan, make_plan

NANO = "builtin:zen-nano"
Family = Callable[[str], Path]


@pytest.mark.parametrize(
    "file_type",
    ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"],
)
def test_they_are_refused_without_any(file_type: str) -> None:
    with pytest.raises(PlanError, match=r"blk\.\d.*--importance") as caught:
        plan(NANO, f"gguf:{file_type}")
    assert all("needs importance weights" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("file_type", ["q2_k", "iq3_s", "iq3_m", "iq4_xs"])
def test_others_are_not(file_type: str) -> None:
    assert plan(NANO, f"gguf:{file_type}").steps


def test_single_tensors_are_refused_too() -> None:
    for options in (Options(tensor_types=(("ffn_up", "iq2_s"),)), Options(output_type="iq2_xxs")):
        with pytest.raises(PlanError, match="--importance"):
            plan(NANO, "gguf:q8_0", options=options)


def test_the_first_tensor_that_is_not_covered_is_named(model: Family) -> None:
    weights = importance_of(model("qwen2"))
    del weights["layers.1.ffn.up.weight"]
    with pytest.raises(PlanError, match=r"blk\.1\.ffn_up\.weight: iq2_s needs importance"):
        planned(model("qwen2"), weights)


def test_what_is_copied_needs_none(model: Family, tmp_path: Path) -> None:
    weights = importance_of(model("qwen2"))
    run(planned(model("qwen2"), weights), tmp_path / "once.gguf", importance=weights)
    convert(tmp_path / "once.gguf", tmp_path / "twice.gguf", "gguf:iq2_m")
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def importance_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Ones for every matrix of the layers, by neutral name."""
    tensors = open_checkpoint(folder).tensors.values()
    return {
        t.name: np.ones(t.columns, dtype=np.float32)
        for t in tensors
        if t.name.startswith("layers.") and len(t.shape) > 1
    }


def planned(folder: Path, weights: dict[str, NDArray[np.float32]]) -> Plan:
    """A plan for iq2_m."""
    return make_plan(
        open_checkpoint(folder), Target.parse("gguf:iq2_m"), Options(), name="once.gguf",
        threads=1, importance=weights,
    )  # fmt: skip
