"""Decoders of the 256-element K-quants Q2_K ... Q6_K and of Q8_K (``dequantize_row_*``).

Super-block layouts (ggml-common.h), d and dmin float16::

    q2_k  scales[16] (4 bit scale, 4 bit min), qs[64], d, dmin   16 x 16 elements
    q3_k  hmask[32], qs[64], scales[12] (16 x 6 bit), d          16 x 16 elements
    q4_k  d, dmin, scales[12] (8 x (6 bit scale, 6 bit min)), qs[128]           8 x 32 elements
    q5_k  d, dmin, scales[12], qh[32], qs[128]                                  8 x 32 elements
    q6_k  ql[128], qh[64], scales i8[16], d                      16 x 16 elements
    q8_k  d f32, qs i8[256], sums i16[16]
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder
from zenconvert.ggml.blocks.fields import f16_at, u32_at


@njit(nogil=True, cache=True, fastmath=False)
def _q2_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, dmin = f16_at(blocks, i, 80), f16_at(blocks, i, 82)
        for group in range(16):
            scale = d * np.float32(blocks[i, group] & np.uint8(15))
            least = dmin * np.float32(blocks[i, group] >> np.uint8(4))
            # 128 elements share 32 bytes: two bits for each of four runs of 32.
            start = 16 + 32 * (group // 8) + 16 * (group % 2)
            shift = np.uint8(2 * (group % 8 // 2))
            for j in range(16):
                q = (blocks[i, start + j] >> shift) & np.uint8(3)
                out[i, 16 * group + j] = scale * np.float32(q) - least


@njit(nogil=True, cache=True, fastmath=False)
def _q3_k_scale(blocks: NDArray[np.uint8], i: int, group: int) -> np.float32:
    """Scale of 16 elements: low four bits in bytes 96-103, high two bits in bytes 104-107."""
    low = blocks[i, 96 + group % 8] >> np.uint8(4 * (group // 8))
    high = blocks[i, 104 + group % 4] >> np.uint8(2 * (group // 4))
    bits = (low & np.uint8(15)) | (high & np.uint8(3)) << np.uint8(4)
    return np.float32(np.float32(bits) - np.float32(32))


@njit(nogil=True, cache=True, fastmath=False)
def _q3_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 108)
        for group in range(16):
            scale = d * _q3_k_scale(blocks, i, group)
            half = 16 * (group % 2)
            start = 32 + 32 * (group // 8) + half
            shift, mask = np.uint8(2 * (group % 8 // 2)), np.uint8(1 << (group // 2))
            for j in range(16):
                low = np.float32((blocks[i, start + j] >> shift) & np.uint8(3))
                high = np.float32(0) if blocks[i, half + j] & mask else np.float32(4)
                out[i, 16 * group + j] = scale * (low - high)


@njit(nogil=True, cache=True, fastmath=False)
def _k4_scale_min(blocks: NDArray[np.uint8], i: int, group: int) -> tuple[np.float32, np.float32]:
    """Six-bit scale and min of 32 elements, packed in bytes 4-15 (``get_scale_min_k4``)."""
    if group < 4:
        scale, least = blocks[i, 4 + group] & np.uint8(63), blocks[i, 8 + group] & np.uint8(63)
    else:
        low = blocks[i, 8 + group]
        top_scale = (blocks[i, group] >> np.uint8(6)) << np.uint8(4)
        top_least = (blocks[i, 4 + group] >> np.uint8(6)) << np.uint8(4)
        scale, least = low & np.uint8(15) | top_scale, low >> np.uint8(4) | top_least
    return np.float32(scale), np.float32(least)


@njit(nogil=True, cache=True, fastmath=False)
def _q4_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, dmin = f16_at(blocks, i, 0), f16_at(blocks, i, 2)
        for group in range(8):
            scale, least = _k4_scale_min(blocks, i, group)
            scale, least = d * scale, dmin * least
            start, shift = 16 + 32 * (group // 2), np.uint8(4 * (group % 2))
            for j in range(32):
                q = (blocks[i, start + j] >> shift) & np.uint8(15)
                out[i, 32 * group + j] = scale * np.float32(q) - least


@njit(nogil=True, cache=True, fastmath=False)
def _q5_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, dmin = f16_at(blocks, i, 0), f16_at(blocks, i, 2)
        for group in range(8):
            scale, least = _k4_scale_min(blocks, i, group)
            scale, least = d * scale, dmin * least
            start, shift = 48 + 32 * (group // 2), np.uint8(4 * (group % 2))
            for j in range(32):
                low = (blocks[i, start + j] >> shift) & np.uint8(15)
                fifth = (blocks[i, 16 + j] >> np.uint8(group)) & np.uint8(1)
                q = np.float32(low | fifth << np.uint8(4))
                out[i, 32 * group + j] = scale * q - least


@njit(nogil=True, cache=True, fastmath=False)
def _q6_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 208)
        for group in range(16):
            scale = d * np.float32(np.int8(blocks[i, 192 + group]))
            part, run = group // 8, group % 8 // 2  # 128 elements in four runs of 32
            low_start = 64 * part + 32 * (run % 2) + 16 * (group % 2)
            high_start = 128 + 32 * part + 16 * (group % 2)
            low_shift, high_shift = np.uint8(4 * (run // 2)), np.uint8(2 * run)
            for j in range(16):
                low = (blocks[i, low_start + j] >> low_shift) & np.uint8(15)
                high = (blocks[i, high_start + j] >> high_shift) & np.uint8(3)
                q = np.float32(low | high << np.uint8(4)) - np.float32(32)
                out[i, 16 * group + j] = scale * q


@njit(nogil=True, cache=True, fastmath=False)
def _q8_k(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = np.uint32(u32_at(blocks, i, 0)).view(np.float32)
        for j in range(256):
            out[i, j] = d * np.float32(np.int8(blocks[i, 4 + j]))


DECODERS: Final[dict[str, Decoder]] = {
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "q8_k": _q8_k,
}
