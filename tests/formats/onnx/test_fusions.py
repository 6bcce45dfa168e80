"""What onnxruntime makes of products in standard operators, and what people are told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from zenconvert import convert
from zenconvert.cli import cli

Model = Callable[[str], Path]
ENTRY = "session.qdq_matmulnbits_accuracy_level"
LEVELS = onnxruntime.GraphOptimizationLevel


def logits(folder: Path, level: Any, entry: str | None = None) -> NDArray[np.float32]:
    """float32[tokens, vocab] of thirty tokens, by a session of our own making."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if entry is not None:
        options.add_session_config_entry(ENTRY, entry)
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    ids = np.random.default_rng(5).integers(3, 250, (1, 30))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for one in session.get_inputs():
        if one.name == "position_ids":
            given[one.name] = np.arange(30, dtype=np.int64)[None]
        elif one.name not in given:
            heads, width = one.shape[1], one.shape[3]
            given[one.name] = np.zeros((1, heads, 0, width), dtype=np.float32)
    found: NDArray[np.float32] = session.run(["logits"], given)[0][0]
    return found


@pytest.mark.parametrize("kind", ["int4-standard", "int8-standard"])
def test_what_is_fused_is_named(kind: str, model: Model, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plan", str(model("qwen2")), "--to", f"onnx:{kind}"])
    assert done.exit_code == 0, done.output
    assert "onnxruntime rounds activations to eight bits" in done.output
    convert(model("qwen2"), tmp_path / "out", f"onnx:{kind}")
    unfused = logits(tmp_path / "out", LEVELS.ORT_DISABLE_ALL)
    kept = logits(tmp_path / "out", LEVELS.ORT_ENABLE_ALL, "0")
    np.testing.assert_allclose(kept, unfused, atol=1e-4 * np.abs(unfused).max())
    assert np.abs(logits(tmp_path / "out", LEVELS.ORT_ENABLE_ALL) - kept).max() > 1e-4


@pytest.mark.parametrize(
    "kind", ["f32-standard", "int4-acc0", "int4-standard-acc0", "int8-asym-standard-acc1"]
)
def test_where_nothing_is_rounded_nothing_is_told(kind: str, model: Model, tmp_path: Path) -> None:
    """In a session as everybody opens it: whatever it fuses, activations stay as they are."""
    done = CliRunner().invoke(cli, ["plan", str(model("qwen2")), "--to", f"onnx:{kind}"])
    assert done.exit_code == 0, done.output
    assert "accuracy_level" not in done.output
    convert(model("qwen2"), tmp_path / "out", f"onnx:{kind}")
    unfused = logits(tmp_path / "out", LEVELS.ORT_DISABLE_ALL)
    fused = logits(tmp_path / "out", LEVELS.ORT_ENABLE_ALL)
    np.testing.assert_allclose(fused, unfused, atol=1e-4 * np.abs(unfused).max())
