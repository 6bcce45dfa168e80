"""Tiles: sixteen super-blocks of 256 weights side by side, one in each lane.

Element i of every super-block stands in row i, so that a search walks down the rows as C walks
through one super-block. Encoded blocks are built the same way (byte i of every block in row i).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.half import f16_bits_to_f32, f32_to_f16_bits
from zenconvert.ggml.blocks.lanes import (
    LANES,
    Floats,
    Ints,
    load,
    scratch,
    select,
    splat,
    square_root,
    store,
    to_ints,
)
from zenconvert.ggml.blocks.rounding import nearest_within

QK_K: Final = 256
"""Elements of a super-block."""
_ZERO: Final = np.float32(0)


class Tile(NamedTuple):
    """Scratch memory of an encoder: f32[rows, 16] except where another type is named."""

    x: NDArray[np.float32]
    """The weights, [256]."""
    importance: NDArray[np.float32]
    """The importance of their columns, [256]."""
    codes: NDArray[np.float32]
    """Whole numbers from 0, [256]."""
    weights: NDArray[np.float32]
    """Weights of the errors in the sub-block at hand, [32]."""
    products: NDArray[np.float32]
    """For the searches, [32]."""
    totals: NDArray[np.float32]
    """Sums of ``weights``, one per sub-block, as the following ones: [16]."""
    scales: NDArray[np.float32]
    minima: NDArray[np.float32]
    scale_codes: NDArray[np.float32]
    minimum_codes: NDArray[np.float32]
    packed: NDArray[np.int32]
    """Bytes that the codes of scales and minima are packed into, i32[16]."""
    half: NDArray[np.float32]
    """For :func:`write_half`, [1]."""
    octets: NDArray[np.uint8]
    """The encoded blocks, u8[type_size]."""


@njit(nogil=True, fastmath=False)
def new_tile(type_size: int) -> Tile:
    """Uninitialised memory for blocks of ``type_size`` bytes."""
    return Tile(
        scratch(QK_K),
        scratch(QK_K),
        scratch(QK_K),
        scratch(32),
        scratch(32),
        scratch(16),
        scratch(16),
        scratch(16),
        scratch(16),
        scratch(16),
        scratch(16).view(np.int32),
        scratch(1),
        np.empty((type_size, LANES), dtype=np.uint8),
    )


@njit(nogil=True, fastmath=False)
def read_blocks(
    blocks: NDArray[np.float32], first: int, period: int, rows: NDArray[np.float32]
) -> None:
    """Fill ``rows`` f32[256, 16] from ``blocks`` f32[n, 256]: lane s is ``(first + s) % period``.

    A period of n wraps around behind the last block; importance has the period of a row of weights.
    """
    for lane in range(LANES):
        source = (first + lane) % period
        for i in range(QK_K):
            rows[i, lane] = blocks[source, i]


@njit(nogil=True, fastmath=False)
def write_blocks(tile: Tile, out: NDArray[np.uint8], first: int) -> None:
    """Copy the encoded blocks to ``out`` u8[n, type_size] from block ``first`` on."""
    for lane in range(min(LANES, out.shape[0] - first)):
        for i in range(out.shape[1]):
            out[first + lane, i] = tile.octets[i, lane]


@njit(nogil=True, fastmath=False)
def write_half(tile: Tile, at: int, value: Floats) -> Floats:
    """Write ``value`` as float16 into bytes ``at`` and ``at + 1``; returns what was kept."""
    store(tile.half, 0, value)
    for lane in range(LANES):
        bits = f32_to_f16_bits(tile.half[0, lane])
        tile.octets[at, lane] = np.uint8(bits)
        tile.octets[at + 1, lane] = np.uint8(bits >> np.uint16(8))
        tile.half[0, lane] = f16_bits_to_f32(bits)
    return load(tile.half, 0)


@njit(nogil=True, fastmath=False)
def mean_square(tile: Tile, factor: np.float32) -> Floats:
    """``factor`` times the mean of the squares of each super-block."""
    squares = splat(_ZERO)
    for i in range(QK_K):
        x = load(tile.x, i)
        squares = squares + x * x
    return factor * squares / np.float32(QK_K)


@njit(nogil=True, fastmath=False)
def weigh_by_importance(tile: Tile, start: int, n: int, mean: Floats) -> Floats:
    """Set the weights of a sub-block to importance times sqrt(mean + x * x); returns their sum."""
    total = splat(_ZERO)
    for i in range(n):
        x = load(tile.x, start + i)
        weight = load(tile.importance, start + i) * square_root(mean + x * x)
        store(tile.weights, i, weight)
        total = total + weight
    return total


@njit(nogil=True, fastmath=False)
def requantize(
    tile: Tile, start: int, n: int, d: Floats, m: Floats, least: np.float32, most: np.float32
) -> None:
    """Final codes of a sub-block under its stored scale ``d`` and minimum ``m``, counted from
    ``least``. Where ``d`` is 0 the codes of the search stay, as in C."""
    is_stale = d == _ZERO
    for i in range(start, start + n):
        code = nearest_within((load(tile.x, i) + m) / d, least, most) - least
        store(tile.codes, i, select(is_stale, load(tile.codes, i), code))


@njit(nogil=True, fastmath=False)
def code(tile: Tile, row: int) -> Ints:
    """The codes in one row."""
    return to_ints(load(tile.codes, row))
