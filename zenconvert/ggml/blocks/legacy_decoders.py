"""Decoders of the 32-element types: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 (``dequantize_row_*``).

Block layouts (ggml-common.h), d and m float16, qs low nibbles first half, high nibbles second::

    q4_0  d, qs[16]            x = (q - 8) d
    q4_1  d, m, qs[16]         x = q d + m
    q5_0  d, qh u32, qs[16]    x = (q - 16) d, bit j of qh is the fifth bit of element j
    q5_1  d, m, qh u32, qs[16] x = q d + m
    q8_0  d, qs i8[32]         x = q d
    q8_1  d, s, qs i8[32]      x = q d; s = d Σq serves products with activations only
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder
from zenconvert.ggml.blocks.fields import f16_at, u32_at

_LOW: Final = np.uint8(15)
_FOUR: Final = np.uint8(4)
_FIFTH: Final = np.uint32(16)


@njit(nogil=True, cache=True, fastmath=False)
def _q4_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(16):
            byte = blocks[i, 2 + j]
            out[i, j] = (np.float32(byte & _LOW) - np.float32(8)) * d
            out[i, j + 16] = (np.float32(byte >> _FOUR) - np.float32(8)) * d


@njit(nogil=True, cache=True, fastmath=False)
def _q4_1(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, m = f16_at(blocks, i, 0), f16_at(blocks, i, 2)
        for j in range(16):
            byte = blocks[i, 4 + j]
            out[i, j] = np.float32(byte & _LOW) * d + m
            out[i, j + 16] = np.float32(byte >> _FOUR) * d + m


@njit(nogil=True, cache=True, fastmath=False)
def _q5_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, qh = f16_at(blocks, i, 0), u32_at(blocks, i, 2)
        for j in range(16):
            byte = blocks[i, 6 + j]
            low = np.uint32(byte & _LOW) | (np.uint32(qh >> np.uint32(j)) << _FOUR) & _FIFTH
            high = np.uint32(byte >> _FOUR) | np.uint32(qh >> np.uint32(j + 12)) & _FIFTH
            out[i, j] = (np.float32(np.int32(low)) - np.float32(16)) * d
            out[i, j + 16] = (np.float32(np.int32(high)) - np.float32(16)) * d


@njit(nogil=True, cache=True, fastmath=False)
def _q5_1(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d, m, qh = f16_at(blocks, i, 0), f16_at(blocks, i, 2), u32_at(blocks, i, 4)
        for j in range(16):
            byte = blocks[i, 8 + j]
            low = np.uint32(byte & _LOW) | (np.uint32(qh >> np.uint32(j)) << _FOUR) & _FIFTH
            high = np.uint32(byte >> _FOUR) | np.uint32(qh >> np.uint32(j + 12)) & _FIFTH
            out[i, j] = np.float32(np.int32(low)) * d + m
            out[i, j + 16] = np.float32(np.int32(high)) * d + m


@njit(nogil=True, cache=True, fastmath=False)
def _q8_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(32):
            out[i, j] = np.float32(np.int8(blocks[i, 2 + j])) * d


@njit(nogil=True, cache=True, fastmath=False)
def _q8_1(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(32):
            out[i, j] = np.float32(np.int8(blocks[i, 4 + j])) * d


DECODERS: Final[dict[str, Decoder]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q8_1": _q8_1,
}
