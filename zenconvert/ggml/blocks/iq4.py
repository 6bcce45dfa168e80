"""IQ4_NL and IQ4_XS: four-bit indices into a table of 16 uneven levels.

Source: ``quantize_row_iq4_nl_impl`` and ``dequantize_row_iq4_*`` in ggml-quants.c. Layouts
(ggml-common.h)::

    iq4_nl  d f16, qs[16]                                   x = d LEVELS[q], 32 elements
    iq4_xs  d f16, scales_h u16, scales_l[4], qs[8][16]     x = d (s - 32) LEVELS[q], 8 x 32

Elements j and j + 16 of a block share byte j of its 16. The encoder works on tiles of
blocks (:mod:`.block_tiles`); row names of ``lanes`` f32[_LANE_ROWS, LANES] are below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder, Encoder
from zenconvert.ggml.blocks.arithmetic import inverse, nearest_int
from zenconvert.ggml.blocks.block_tiles import LANES, load_tile, store_nibbles
from zenconvert.ggml.blocks.fields import f16_at, put_f16, put_u16, u16_at

_LEVELS: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_MIDDLES: Final = (_LEVELS[1:] + _LEVELS[:-1]) / np.float32(2)  # exact; from here the upper wins
_NO_IMPORTANCE: Final = np.empty(0, dtype=np.float32)
_NO_IMPORTANCE.flags.writeable = False
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
    level: np.float32 = _LEVELS[15]
    for k in range(14, -1, -1):
        level = _LEVELS[k] if scaled < _MIDDLES[k] else level
    return level


@njit(nogil=True, cache=True, fastmath=False)
def _spread(blocks: NDArray[np.float32], first: int, count: int, group: int) -> NDArray[np.float32]:
    """Twice the mean square of each ``group`` of blocks, for each of its blocks: f32[LANES]."""
    spread = np.zeros(LANES, dtype=np.float32)
    for start in range(0, count, group):
        total = _ZERO
        for k in range(start, start + group):
            for j in range(32):
                total += blocks[first + k, j] * blocks[first + k, j]
        spread[start : start + group] = total * (np.float32(2) / np.float32(32 * group))
    return spread


@njit(nogil=True, cache=True, fastmath=False)
def _load(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    first: int,
    group: int,
    x: NDArray[np.float32],
    w: NDArray[np.float32],
) -> int:
    """Fill ``x`` and error weights ``w`` f32[32, LANES]; returns how many blocks there were.

    The weight is importance sqrt(spread + x x); x x when ``importance`` is empty.
    """
    count: int = load_tile(blocks, importance, first, x, w)
    if importance.shape[0] == 0:
        w[:] = x * x
        return count
    spread = _spread(blocks, first, count, group)
    for j in range(32):
        for k in range(LANES):
            w[j, k] *= np.sqrt(spread[k] + x[j, k] * x[j, k])
    return count


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
def _sum_levels(x: NDArray[np.float32], w: NDArray[np.float32], lanes: NDArray[np.float32]) -> None:
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


@njit(nogil=True, cache=True, fastmath=False)
def _set_indices(
    x: NDArray[np.float32], lanes: NDArray[np.float32], indices: NDArray[np.float32]
) -> None:
    for j in range(32):
        for k in range(LANES):
            indices[j, k] = _index(lanes[_INVERSE, k] * x[j, k])


@njit(nogil=True, cache=True, fastmath=False)
def _encode_iq4_nl(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    x = np.empty((32, LANES), dtype=np.float32)
    w, indices = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((_LANE_ROWS, LANES), dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, first, 1, x, w)
        _search_scales(x, w, lanes)
        for k in range(count):
            lanes[_INVERSE, k] = inverse(lanes[_SCALE, k])
            put_f16(out, first + k, 0, lanes[_SCALE, k])
        _set_indices(x, lanes, indices)
        store_nibbles(indices, first, count, out, 1)


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
    inverse_d, high = inverse(d), np.uint16(0)
    for k in range(8):
        level = nearest_int(inverse_d * lanes[_SCALE, first + k])
        level = min(max(level, np.float32(-32)), np.float32(31))
        lanes[_INVERSE, first + k] = inverse(np.float32(d * level))
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
) -> None:
    x = np.empty((32, LANES), dtype=np.float32)
    w, indices = np.empty_like(x), np.empty_like(x)
    lanes = np.empty((_LANE_ROWS, LANES), dtype=np.float32)
    for first in range(0, blocks.shape[0], LANES):
        count = _load(blocks, importance, first, 8, x, w)
        _search_scales(x, w, lanes)
        for k in range(0, count, 8):
            _store_scales(lanes, k, (first + k) // 8, out)
        _set_indices(x, lanes, indices)
        store_nibbles(indices, first, count, out, 8)


def _encoder(kernel: Callable[..., None], group: int) -> Encoder:
    """The encoder of a type whose blocks hold ``group`` times 32 elements."""

    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        per_column = _NO_IMPORTANCE if importance is None else importance
        blocks = weights.reshape(-1, 32)
        encoded = out.reshape(len(blocks) // group, -1)
        kernel(blocks, per_column.reshape(-1, 32), encoded)

    return encode


@njit(nogil=True, cache=True, fastmath=False)
def _decode_iq4_nl(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(16):
            byte = blocks[i, 2 + j]
            out[i, j] = d * _LEVELS[byte & np.uint8(15)]
            out[i, j + 16] = d * _LEVELS[byte >> np.uint8(4)]


@njit(nogil=True, cache=True, fastmath=False)
def _decode_iq4_xs(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, high = f16_at(blocks, i, 0), u16_at(blocks, i, 2)
        for group in range(8):
            low = (blocks[i, 4 + group // 2] >> np.uint8(4 * (group % 2))) & np.uint8(15)
            top = (high >> np.uint16(2 * group)) & np.uint16(3)
            scale = d * (np.float32(low | top << np.uint16(4)) - np.float32(32))
            for j in range(16):
                byte = blocks[i, 8 + 16 * group + j]
                out[i, 32 * group + j] = scale * _LEVELS[byte & np.uint8(15)]
                out[i, 32 * group + j + 16] = scale * _LEVELS[byte >> np.uint8(4)]


ENCODERS: Final[dict[str, Encoder]] = {
    "iq4_nl": _encoder(_encode_iq4_nl, 1),
    "iq4_xs": _encoder(_encode_iq4_xs, 8),
}
DECODERS: Final[dict[str, Decoder]] = {"iq4_nl": _decode_iq4_nl, "iq4_xs": _decode_iq4_xs}
