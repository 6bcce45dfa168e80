"""Decoders of the codebook types IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S.

Source: ``dequantize_row_iq*`` in ggml-quants.c; codebooks in :mod:`.grids`. All have 256 elements,
cut into eight groups of 32. Layouts (ggml-common.h), d float16::

    iq2_xxs  d, 8 x (index u8[4], u32: 4 x 7 bits signs, 4 bits scale)
    iq2_xs   d, u16[32]: 9 bits index, 7 bits signs; scales[8]: 4 bits per 16 elements
    iq2_s    d, index low u8[32], signs u8[32], index high[8]: 4 x 2 bits, scales[8]
    iq3_xxs  d, index u8[64], 8 x u32 as in iq2_xxs
    iq3_s    d, index low u8[64], index high[8]: 8 x 1 bit, signs u8[32], scales[4]
    iq1_s    d, index low u8[32], u16[8]: 4 x 3 bits index high, 3 bits scale, 1 bit shift
    iq1_m    index low u8[32], u8[16]: 2 x (3 bits index high, 1 bit shift), scales u16[4]:
             4 x 3 bits and a quarter of d each
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder
from zenconvert.ggml.blocks.fields import f16_at, u16_at, u32_at
from zenconvert.ggml.blocks.grids import points, signs
from zenconvert.ggml.blocks.half import f16_bits_to_f32

_SIGNS: Final = signs()
_HALF: Final = np.float32(0.5)
_QUARTER: Final = np.float32(0.25)
_SHIFT: Final = np.float32(0.125)


@njit(nogil=True, cache=True, fastmath=False)
def _put(
    out: NDArray[np.float32],
    i: int,
    at: int,
    point: NDArray[np.float32],
    scale: np.float32,
    negative: int,
) -> None:
    """Write scale * point to ``out[i, at:]``, negated where ``negative`` has a bit."""
    for j in range(point.shape[0]):
        sign = np.float32(-1) if (negative >> j) & 1 else np.float32(1)
        out[i, at + j] = scale * point[j] * sign


@njit(nogil=True, cache=True, fastmath=False)
def _iq2_xxs(
    blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]
) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for group in range(8):
            at = 2 + 8 * group
            word = np.int64(u32_at(blocks, i, at + 4))
            scale = d * (_HALF + np.float32(word >> 28)) * _QUARTER
            for part in range(4):
                point, negative = grid[blocks[i, at + part]], _SIGNS[(word >> 7 * part) & 127]
                _put(out, i, 32 * group + 8 * part, point, scale, negative)


@njit(nogil=True, cache=True, fastmath=False)
def _iq2_xs(blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for part in range(32):
            number = (np.int64(blocks[i, 66 + part // 4]) >> 4 * (part % 4 // 2)) & 15
            scale = d * (_HALF + np.float32(number)) * _QUARTER
            word = np.int64(u16_at(blocks, i, 2 + 2 * part))
            _put(out, i, 8 * part, grid[word & 511], scale, _SIGNS[word >> 9])


@njit(nogil=True, cache=True, fastmath=False)
def _iq2_s(blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for part in range(32):
            number = (np.int64(blocks[i, 74 + part // 4]) >> 4 * (part % 4 // 2)) & 15
            scale = d * (_HALF + np.float32(number)) * _QUARTER
            high = (np.int64(blocks[i, 66 + part // 4]) >> 2 * (part % 4)) & 3
            point = grid[np.int64(blocks[i, 2 + part]) | high << 8]
            _put(out, i, 8 * part, point, scale, blocks[i, 34 + part])


@njit(nogil=True, cache=True, fastmath=False)
def _iq3_xxs(
    blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]
) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for group in range(8):
            word = np.int64(u32_at(blocks, i, 66 + 4 * group))
            scale = d * (_HALF + np.float32(word >> 28)) * _HALF
            for part in range(8):
                negative = _SIGNS[(word >> 7 * (part // 2)) & 127] >> 4 * (part % 2)
                point = grid[blocks[i, 2 + 8 * group + part]]
                _put(out, i, 32 * group + 4 * part, point, scale, negative)


@njit(nogil=True, cache=True, fastmath=False)
def _iq3_s(blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for part in range(64):
            group = part // 8
            number = (np.int64(blocks[i, 106 + group // 2]) >> 4 * (group % 2)) & 15
            high = (np.int64(blocks[i, 66 + group]) >> (part % 8)) & 1
            point = grid[np.int64(blocks[i, 2 + part]) | high << 8]
            negative = np.int64(blocks[i, 74 + part // 2]) >> 4 * (part % 2)
            _put(out, i, 4 * part, point, d * np.float32(1 + 2 * number), negative)


@njit(nogil=True, cache=True, fastmath=False)
def _put_shifted(
    out: NDArray[np.float32],
    i: int,
    at: int,
    point: NDArray[np.float32],
    scale: np.float32,
    down: int,
) -> None:
    """Write scale * (point +- 1/8) to ``out[i, at:]``."""
    shift = -_SHIFT if down else _SHIFT
    for j in range(point.shape[0]):
        out[i, at + j] = scale * (point[j] + shift)


@njit(nogil=True, cache=True, fastmath=False)
def _iq1_s(blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for group in range(8):
            word = np.int64(u16_at(blocks, i, 34 + 2 * group))
            scale = d * np.float32(2 * ((word >> 12) & 7) + 1)
            for part in range(4):
                low, high = np.int64(blocks[i, 2 + 4 * group + part]), (word >> 3 * part) & 7
                _put_shifted(
                    out, i, 32 * group + 8 * part, grid[low | high << 8], scale, word >> 15
                )


@njit(nogil=True, cache=True, fastmath=False)
def _iq1_m(blocks: NDArray[np.uint8], out: NDArray[np.float32], grid: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        bits = np.int64(0)
        for quarter in range(4):
            bits |= (np.int64(u16_at(blocks, i, 48 + 2 * quarter)) >> 12) << 4 * quarter
        d = f16_bits_to_f32(np.uint16(bits))
        for part in range(32):
            half = part // 2  # 16 elements share a scale
            number = (np.int64(u16_at(blocks, i, 48 + 2 * (half // 4))) >> 3 * (half % 4)) & 7
            high = np.int64(blocks[i, 32 + half]) >> 4 * (part % 2)
            point = grid[np.int64(blocks[i, part]) | (high & 7) << 8]
            _put_shifted(out, i, 8 * part, point, d * np.float32(2 * number + 1), high & 8)


def _decoder(kernel: Callable[..., None], grid: str) -> Decoder:
    def decode(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        kernel(blocks, out, points(grid))

    return decode


DECODERS: Final[dict[str, Decoder]] = {
    "iq2_xxs": _decoder(_iq2_xxs, "iq2_xxs"),
    "iq2_xs": _decoder(_iq2_xs, "iq2_xs"),
    "iq2_s": _decoder(_iq2_s, "iq2_s"),
    "iq3_xxs": _decoder(_iq3_xxs, "iq3_xxs"),
    "iq3_s": _decoder(_iq3_s, "iq3_s"),
    "iq1_s": _decoder(_iq1_s, "iq1"),
    "iq1_m": _decoder(_iq1_m, "iq1"),
}
