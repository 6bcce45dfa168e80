"""OpenVINO computes with our ONNX graphs what transformers computes with the decoded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.conftest import Written
from tests.oracles.tool import Tool

pytestmark = pytest.mark.oracles


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("builtin:zen-nano", "onnx:f32"),
        ("builtin:zen-nano", "onnx:int8"),
        ("builtin:zen-nano", "onnx:int4"),
        ("builtin:zen-nano", "onnx:int4-standard"),
        ("llama3", "onnx:int4-asym"),
        ("mixtral", "onnx:f32"),
        ("mixtral", "onnx:int4-standard"),
    ],
)
def test_it_computes_with_our_graphs_what_we_decode(
    source: str, target: str, written: Written, openvino: Tool, tmp_path: Path
) -> None:
    """In float32 throughout: divergences are 1e-11 and less."""
    folder = written(source, target)
    openvino("logits", graph=folder / "model.onnx", ids=ours.IDS, out=tmp_path / "theirs.npy")
    divergence = ours.divergence(ours.logits(folder), np.load(tmp_path / "theirs.npy"))
    assert divergence.max() < 1e-8


def test_it_has_no_operator_for_stacked_experts(written: Written, openvino: Tool) -> None:
    """Why ``-standard`` is what a Mixtral in integers takes there."""
    said = openvino("refused", graph=written("mixtral", "onnx:int4") / "model.onnx")
    assert "com.microsoft.QMoE" in said
