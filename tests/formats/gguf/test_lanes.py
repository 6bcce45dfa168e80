"""Operations of sixteen lanes that are compiled differently from one processor to another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]

CODE = """
import numpy as np
from numba import njit
from zenconvert.ggml.blocks.lanes import (
    first_least, lane, load, load_words, lookup, store, to_floats
)

@njit
def run(table, words, found):
    numbers = load(table, 0)
    for row in range(words.shape[0]):
        index = load_words(words, row)
        values = lookup(numbers, index >> np.int32(2))
        store(found, row, values)
        least = first_least(values)
        if lane(values, least) != found[row].min() or least != np.argmin(found[row]):
            return row
    return -1

rng = np.random.default_rng(0)
eight = rng.random(8, dtype=np.float32)
words = rng.integers(0, 1 << 16, (40, 16)).astype(np.uint16)
found = np.empty((40, 16), dtype=np.float32)
assert run(np.tile(eight, 2)[None], words, found) == -1
assert (found == eight[(words >> 2) % 8]).all()
"""
HOST = get_host_cpu_features()
FEATURES = ["", *(["+avx2"] if HOST.get("avx2") else [])]


@pytest.mark.parametrize("features", [*FEATURES, None])
def test_lookup_and_least(features: str | None) -> None:
    """``None``: whatever this machine has."""
    chosen = (
        {} if features is None else {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    )
    subprocess.run([sys.executable, "-c", CODE], check=True, env=os.environ | chosen)
