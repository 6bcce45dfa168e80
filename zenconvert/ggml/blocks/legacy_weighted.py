"""Encoders of Q4_0 Q4_1 Q5_0 Q5_1 with importance weights (``quantize_row_*_impl``).

The weight of element x in column c is ``importance[c] * sqrt(spread + x * x)``, where ``spread`` is
the mean square of the whole row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.block_tiles import LANES, load_tile, store_nibbles
from zenconvert.ggml.blocks.fields import put_f16, put_u32
from zenconvert.ggml.blocks.weighted_search import (
    LANE_ROWS,
    LOW,
    SCALE,
    search_line,
    search_scale,
)

Weighted = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]], None]


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _mean_squares(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    means = np.empty(rows.shape[0], dtype=np.float32)
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for j in range(rows.shape[1]):
            total += rows[i, j] * rows[i, j]
        means[i] = total / np.float32(rows.shape[1])
    return means


@njit(nogil=True, cache=True, fastmath=False)
def _load(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    spreads: NDArray[np.float32],
    first: int,
    x: NDArray[np.float32],
    w: NDArray[np.float32],
) -> int:
    """Fill ``x`` and the error weights ``w`` f32[32, LANES]; returns how many blocks there were."""
    count: int = load_tile(blocks, importance, first, x, w)
    spread = np.zeros(LANES, dtype=np.float32)
    for k in range(count):
        spread[k] = spreads[(first + k) // importance.shape[0]]
    for j in range(32):
        for k in range(LANES):
            w[j, k] *= np.sqrt(spread[k] + x[j, k] * x[j, k])
    return count


@njit(nogil=True, cache=True, fastmath=False)
def _store_fifth_bits(
    levels: NDArray[np.float32], first: int, count: int, out: NDArray[np.uint8]
) -> None:
    """Bit j of the uint32 in ``out`` u8[n, 4] is the fifth bit of element j."""
    bits = np.zeros(LANES, dtype=np.uint32)
    for j in range(32):
        for k in range(LANES):
            fifth = np.uint32(1) if levels[j, k] >= np.float32(16) else np.uint32(0)
            bits[k] |= fifth << np.uint32(j)
    for k in range(count):
        put_u32(out, first + k, 0, bits[k])


@njit(nogil=True, cache=True, fastmath=False)
def _symmetric(
    rows: NDArray[np.float32],
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    reach: np.float32,
    out: NDArray[np.uint8],
) -> None:
    spreads = _mean_squares(rows)
    x = np.empty((32, LANES), dtype=np.float32)
    w, levels = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((LANE_ROWS, LANES), dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, spreads, first, x, w)
        search_scale(x, w, reach, lanes, levels)
        for k in range(count):
            put_f16(out, first + k, 0, lanes[SCALE, k])
        store_nibbles(levels, first, count, out, 1)
        if reach > np.float32(8):
            _store_fifth_bits(levels, first, count, out[:, 2:6])


@njit(nogil=True, cache=True, fastmath=False)
def _affine(
    rows: NDArray[np.float32],
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    top: np.float32,
    out: NDArray[np.uint8],
) -> None:
    spreads = _mean_squares(rows)
    x = np.empty((32, LANES), dtype=np.float32)
    w, levels = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((LANE_ROWS, LANES), dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, spreads, first, x, w)
        search_line(x, w, top, lanes, levels)
        for k in range(count):
            put_f16(out, first + k, 0, lanes[SCALE, k])
            put_f16(out, first + k, 2, lanes[LOW, k])
        store_nibbles(levels, first, count, out, 1)
        if top > np.float32(15):
            _store_fifth_bits(levels, first, count, out[:, 4:8])


def _weighted(kernel: Callable[..., None], extent: int) -> Weighted:
    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32], out: NDArray[np.uint8]
    ) -> None:
        blocks = weights.reshape(-1, 32)
        encoded = out.reshape(len(blocks), -1)
        kernel(weights, blocks, importance.reshape(-1, 32), np.float32(extent), encoded)

    return encode


WEIGHTED: Final[dict[str, Weighted]] = {
    "q4_0": _weighted(_symmetric, 8),
    "q4_1": _weighted(_affine, 15),
    "q5_0": _weighted(_symmetric, 16),
    "q5_1": _weighted(_affine, 31),
}
