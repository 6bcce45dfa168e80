"""IQ4_NL and IQ4_XS: four-bit indices into a table of 16 uneven levels.

Source: ``quantize_row_iq4_nl_impl`` and ``dequantize_row_iq4_*`` in ggml-quants.c. Layouts
(ggml-common.h)::

    iq4_nl  d f16, qs[16]                                   x = d LEVELS[q], 32 elements
    iq4_xs  d f16, scales_h u16, scales_l[4], qs[8][16]     x = d (s - 32) LEVELS[q], 8 x 32

Elements j and j + 16 of a block share byte j of its 16. The encoder works on tiles of
blocks (:mod:`.tiles`); row names of ``lanes`` f32[_LANE_ROWS, LANES] are below.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zenconvert.formats.gguf.blocks import Decoder, Encoder
from zenconvert.formats.gguf.blocks.fields import f16_at, put_f16, put_u16, u16_at
from zenconvert.formats.gguf.blocks.tiles import LANES, load_tile, nearest_int, store_nibbles

_LEVELS: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_MIDDLES: Final = (_LEVELS[1:] + _LEVELS[:-1]) / np.float32(2)  # exact; from here the upper wins
_TRIES: Final = 7
_EPSILON: Final = np.float32(1e-15)
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)

_PEAK, _PEAK_SIZE, _INVERSE, _SUM_QX, _SUM_QQ, _SCALE, _BEST = range(7)
_LANE_ROWS: Final = 7


@njit(nogil=True, cache=True, fastmath=False)
def _index(scaled: np.float32) -> np.float32:
    """Index of the nearest level, of the upper one halfway; NaN gives 15 as in C."""
    index = np.float32(15)
    for k in range(15):
        index -= _ONE if scaled < _MIDDLES[k] else _ZERO
    return index


@njit(nogil=True, cache=True, fastmath=False)
def _nearest_level(scaled: np.float32) -> np.float32:
    level = _LEVELS[15]
    for k in range(14, -1, -1):
        level = _LEVELS[k] if scaled < _MIDDLES[k] else level
    return level


@njit(nogil=True, cache=True, fastmath=False)
def _set_error_weights(
    x: NDArray[np.float32], w: NDArray[np.float32], spread: NDArray[np.float32], weighted: bool
) -> None:
    """``w`` f32[32, LANES]: importance sqrt(spread + x x) if there is importance, else x x."""
    for j in range(32):
        for k in range(LANES):
            square = x[j, k] * x[j, k]
            w[j, k] = w[j, k] * np.sqrt(spread[k] + square) if weighted else square


@njit(nogil=True, cache=True, fastmath=False)
def _spread(
    blocks: NDArray[np.float32], first: int, count: int, group: int, spread: NDArray[np.float32]
) -> None:
    """Twice the mean square of each ``group`` of blocks, for each of its blocks."""
    for start in range(0, count, group):
        total = _ZERO
        for k in range(start, start + group):
            for j in range(32):
                total += blocks[first + k, j] * blocks[first + k, j]
        for k in range(start, start + group):
            spread[k] = total * (np.float32(2) / np.float32(32 * group))


@njit(nogil=True, cache=True, fastmath=False)
def _find_peaks(x: NDArray[np.float32], lanes: NDArray[np.float32]) -> None:
    """The first element of largest magnitude of each block."""
    lanes[_PEAK], lanes[_PEAK_SIZE] = _ZERO, _ZERO
    for j in range(32):
        for k in range(LANES):
            size, largest = abs(x[j, k]), lanes[_PEAK_SIZE, k]
            lanes[_PEAK, k] = x[j, k] if size > largest else lanes[_PEAK, k]
            lanes[_PEAK_SIZE, k] = size if size > largest else largest


@njit(nogil=True, cache=True, fastmath=False)
def _sum_levels(
    x: NDArray[np.float32], w: NDArray[np.float32], lanes: NDArray[np.float32]
) -> None:
    """Sums of w q x and w q q for the nearest levels q of x times the inverse scale."""
    lanes[_SUM_QX], lanes[_SUM_QQ] = _ZERO, _ZERO
    for j in range(32):
        for k in range(LANES):
            level = _nearest_level(lanes[_INVERSE, k] * x[j, k])
            weighted = w[j, k] * level
            lanes[_SUM_QX, k] += weighted * x[j, k]
            lanes[_SUM_QQ, k] += weighted * level


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _search_scales(
    x: NDArray[np.float32], w: NDArray[np.float32], lanes: NDArray[np.float32]
) -> None:
    """Row _SCALE: the best least squares scale of 16 candidates; 0 for a block of zeros."""
    _find_peaks(x, lanes)
    for k in range(LANES):
        lanes[_INVERSE, k] = _ONE / (-lanes[_PEAK, k] / _LEVELS[0])
    _sum_levels(x, w, lanes)
    for k in range(LANES):
        qx, qq = lanes[_SUM_QX, k], lanes[_SUM_QQ, k]
        scale = qx / qq if qq > _ZERO else _ZERO
        lanes[_SCALE, k], lanes[_BEST, k] = scale, scale * qx
    for step in range(-_TRIES, _TRIES + 1):
        for k in range(LANES):
            lanes[_INVERSE, k] = (np.float32(step) + _LEVELS[0]) / lanes[_PEAK, k]
        _sum_levels(x, w, lanes)
        for k in range(LANES):
            qx, qq = lanes[_SUM_QX, k], lanes[_SUM_QQ, k]
            better = (qq > _ZERO) & (qx * qx > lanes[_BEST, k] * qq)
            scale = qx / qq
            lanes[_SCALE, k] = scale if better else lanes[_SCALE, k]
            lanes[_BEST, k] = scale * qx if better else lanes[_BEST, k]
    for k in range(LANES):
        lanes[_SCALE, k] = _ZERO if lanes[_PEAK_SIZE, k] < _EPSILON else lanes[_SCALE, k]


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _inverse(d: np.float32) -> np.float32:
    return _ONE / d if d != _ZERO else _ZERO


@njit(nogil=True, cache=True, fastmath=False)
def _set_indices(
    x: NDArray[np.float32], lanes: NDArray[np.float32], indices: NDArray[np.float32]
) -> None:
    for j in range(32):
        for k in range(LANES):
            indices[j, k] = _index(lanes[_INVERSE, k] * x[j, k])


@njit(nogil=True, cache=True, fastmath=False)
def _encode_iq4_nl(
    blocks: NDArray[np.float32], importance: NDArray[np.float32], out: NDArray[np.uint8]
) -> None:
    x = np.empty((32, LANES), dtype=np.float32)
    w, indices = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((_LANE_ROWS, LANES), dtype=np.float32)
    spread = np.zeros(LANES, dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = load_tile(blocks, importance, first, x, w)
        _spread(blocks, first, count, 1, spread)
        _set_error_weights(x, w, spread, importance.shape[0] > 0)
        _search_scales(x, w, lanes)
        for k in range(count):
            lanes[_INVERSE, k] = _inverse(lanes[_SCALE, k])
            put_f16(out, first + k, 0, lanes[_SCALE, k])
        _set_indices(x, lanes, indices)
        store_nibbles(indices, first, count, out, 2)


@njit(nogil=True, cache=True, fastmath=False)
def _store_scales(
    lanes: NDArray[np.float32], first: int, group: int, out: NDArray[np.uint8]
) -> None:
    """Quantize the scales of the 8 blocks from lane ``first`` to 6 bits; set their _INVERSE."""
    largest, largest_size = _ZERO, _ZERO
    for k in range(first, first + 8):
        size = abs(lanes[_SCALE, k])
        largest = lanes[_SCALE, k] if size > largest_size else largest
        largest_size = size if size > largest_size else largest_size
    d = np.float32(-largest / np.float32(32))
    inverse, high = _inverse(d), np.uint16(0)
    for k in range(8):
        level = nearest_int(inverse * lanes[_SCALE, first + k])
        level = min(max(level, np.float32(-32)), np.float32(31))
        lanes[_INVERSE, first + k] = _inverse(np.float32(d * level))
        code = np.uint16(level + np.float32(32))
        shift = np.uint8(4 * (k % 2))
        previous = out[group, 4 + k // 2] if k % 2 else np.uint8(0)
        out[group, 4 + k // 2] = previous | np.uint8(np.uint8(code & np.uint16(15)) << shift)
        high |= np.uint16((code >> np.uint16(4)) << np.uint16(2 * k))
    put_f16(out, group, 0, d)
    put_u16(out, group, 2, high)


@njit(nogil=True, cache=True, fastmath=False)
def _encode_iq4_xs(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    out: NDArray[np.uint8],
    nibbles: NDArray[np.uint8],
) -> None:
    x = np.empty((32, LANES), dtype=np.float32)
    w, indices = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((_LANE_ROWS, LANES), dtype=np.float32)
    spread = np.zeros(LANES, dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = load_tile(blocks, importance, first, x, w)
        _spread(blocks, first, count, 8, spread)
        _set_error_weights(x, w, spread, importance.shape[0] > 0)
        _search_scales(x, w, lanes)
        for k in range(0, count, 8):
            _store_scales(lanes, k, (first + k) // 8, out)
        _set_indices(x, lanes, indices)
        store_nibbles(indices, first, count, nibbles, 0)
