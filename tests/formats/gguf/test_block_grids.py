"""Blocks taken apart into integers, scales and minimums are what the decoders make of them."""

from __future__ import annotations

import numpy as np
import pytest

from zenconvert.ggml import block_grids, blocks
from zenconvert.ggml.types import BY_NAME

HALVES = {
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "q4_1": (0, 2),
    "q5_1": (0, 2),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
    "mxfp4": (),
    "q4_0": (0,),
    "q5_0": (0,),
    "q8_0": (0,),
}
"""Where every type has float16 numbers."""


@pytest.mark.parametrize("name", HALVES)
def test_grids_hold_what_blocks_decode_to(name: str) -> None:
    """On random bytes, whose float16 numbers are finite."""
    ggml, columns = BY_NAME[name], 1024
    shape = (64, columns // ggml.block_size * ggml.type_size)
    data = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    parts = data.reshape(-1, ggml.type_size)
    for at in HALVES[name]:
        parts[:, at + 1] &= 0xBB
    if name == "mxfp4":
        parts[:, 0] %= 200
    rows = block_grids.to_grouped(name, data, columns)
    grid = block_grids.GRIDS.get(name)
    assert rows.encoding == grid
    assert int(rows.codes.max()) < 1 << rows.bits
    np.testing.assert_array_equal(rows.dequantize(), blocks.decode(name, data, columns))


def test_every_grid_is_tested() -> None:
    assert set(HALVES) == set(block_grids.GRIDS)
