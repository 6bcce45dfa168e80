"""Tiles of blocks for SIMD: arrays f32[32 elements, LANES blocks], one lane a block.

A loop over the elements with the lanes inside keeps C's order of float32 operations in every block
while LLVM vectorises over the blocks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit

LANES: Final = 64


@njit(nogil=True, cache=True, fastmath=False)
def load_tile(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    first: int,
    x: NDArray[np.float32],
    w: NDArray[np.float32],
) -> int:
    """Fill ``x`` f32[32, LANES] from ``blocks`` f32[n, 32] starting at ``first``.

    ``w`` f32[32, LANES] gets the importance of each element from ``importance`` f32[blocks of a
    row, 32]; it stays as it is when that is empty. Lanes beyond the last block hold zeros. Returns
    the number of blocks loaded.
    """
    count: int = min(LANES, blocks.shape[0] - first)
    per_row = importance.shape[0]
    if count < LANES:
        x[:], w[:] = np.float32(0), np.float32(0)
    for k in range(count):
        for j in range(32):
            x[j, k] = blocks[first + k, j]
    if per_row > 0:
        for k in range(count):
            column = (first + k) % per_row
            for j in range(32):
                w[j, k] = importance[column, j]
    return count


@njit(nogil=True, cache=True, fastmath=False)
def store_nibbles(
    levels: NDArray[np.float32], first: int, count: int, out: NDArray[np.uint8], group: int
) -> None:
    """Write the low four bits of ``levels`` f32[32, LANES] of ``count`` blocks.

    ``out`` u8[n, type_size] ends in 16 bytes for each of ``group`` blocks; elements j and j + 16 of
    a block share its byte j.
    """
    packed = np.empty((16, LANES), dtype=np.uint8)
    for j in range(16):
        for k in range(LANES):
            low, high = np.uint8(levels[j, k]), np.uint8(levels[j + 16, k])
            packed[j, k] = (low & np.uint8(15)) | (high << np.uint8(4))
    start = out.shape[1] - 16 * group
    for k in range(count):
        i, member = divmod(first + k, group)
        for j in range(16):
            out[i, start + 16 * member + j] = packed[j, k]
