"""What ``test_device_encoders`` runs in a process where Triton interprets kernels, and on GPUs."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zenconvert.ggml import blocks, devices

INTERPRETED = [
    ("q2_k", True), ("q3_k", False), ("q3_k", True), ("q6_k", True), ("q4_0", False),
    ("q4_0", True), ("q5_1", False), ("q8_0", False), ("iq4_xs", True),
]  # fmt: skip
"""Every kernel, and the branches of each; the interpreter takes seconds for one."""
WHERE = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
COLUMNS = 512
EVERY = [(name, weighed) for name in devices.TYPES for weighed in (False, True)]


def hard_rows() -> NDArray[np.float32]:
    """Rows with zeros of both signs, equal numbers, one sign alone, subnormals and outliers."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((8, COLUMNS)) * 0.05).astype(np.float32)
    rows[0, :64], rows[0, 64:96], rows[0, 96:128] = 0, 1e-20, 0.3
    rows[1] *= 1e-6
    rows[1, 5] = 1
    rows[2], rows[3] = np.abs(rows[2]), -np.abs(rows[3])
    rows[4] = rng.integers(-3, 4, COLUMNS) * 0.25
    rows[5] = 0
    rows[5, 100] = 1e-38
    rows[6] *= 1e-39
    rows[7, :128], rows[7, 40] = -0.0, 0.0
    return rows


@pytest.mark.parametrize(("name", "weighed"), INTERPRETED if WHERE == "cpu" else EVERY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of quotients that are not used
def test_the_bytes_are_the_host_s(name: str, weighed: bool) -> None:
    rows, rng = hard_rows(), np.random.default_rng(1)
    importance = (rng.random(COLUMNS) ** 4).astype(np.float32)
    importance[rng.random(COLUMNS) < 0.3] = 0
    there = torch.from_numpy(importance).to(WHERE) if weighed else None
    found = devices.encode(name, torch.from_numpy(rows).to(WHERE), there).cpu().numpy()
    host = blocks.encode(name, rows, importance if weighed else None)
    assert np.array_equal(found, host)
