"""Little-endian fields inside block bytes, for Numba kernels: ``blocks[i, at:]`` u8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.half import f16_bits_to_f32, f32_to_f16_bits


@njit(nogil=True, cache=True, fastmath=False)
def u16_at(blocks: NDArray[np.uint8], i: int, at: int) -> np.uint16:
    """The uint16 at byte ``at`` of block ``i``."""
    return np.uint16(blocks[i, at] | (np.uint16(blocks[i, at + 1]) << np.uint16(8)))


@njit(nogil=True, cache=True, fastmath=False)
def u32_at(blocks: NDArray[np.uint8], i: int, at: int) -> np.uint32:
    """The uint32 at byte ``at`` of block ``i``."""
    return np.uint32(
        u16_at(blocks, i, at) | (np.uint32(u16_at(blocks, i, at + 2)) << np.uint32(16))
    )


@njit(nogil=True, cache=True, fastmath=False)
def f16_at(blocks: NDArray[np.uint8], i: int, at: int) -> np.float32:
    """The float16 at byte ``at`` of block ``i``, as float32."""
    value: np.float32 = f16_bits_to_f32(u16_at(blocks, i, at))
    return value


@njit(nogil=True, cache=True, fastmath=False)
def put_u16(out: NDArray[np.uint8], i: int, at: int, bits: np.uint16) -> None:
    """Write a uint16 at byte ``at`` of block ``i``."""
    out[i, at] = np.uint8(bits)
    out[i, at + 1] = np.uint8(bits >> np.uint16(8))


@njit(nogil=True, cache=True, fastmath=False)
def put_f16(out: NDArray[np.uint8], i: int, at: int, value: np.float32) -> None:
    """Write ``value``, rounded to the nearest float16, at byte ``at`` of block ``i``."""
    put_u16(out, i, at, f32_to_f16_bits(value))


@njit(nogil=True, cache=True, fastmath=False)
def put_u32(out: NDArray[np.uint8], i: int, at: int, bits: np.uint32) -> None:
    """Write a uint32 at byte ``at`` of block ``i``."""
    put_u16(out, i, at, np.uint16(bits))
    put_u16(out, i, at + 2, np.uint16(bits >> np.uint32(16)))
