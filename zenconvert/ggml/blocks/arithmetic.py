"""Float32 arithmetic as C does it on x86-64, for Numba kernels."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit

F32_MAX: Final = np.float32(np.finfo(np.float32).max)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def inverse(d: np.float32) -> np.float32:
    """1 / d, or 0 when d is 0. Infinite for the smallest subnormal numbers."""
    return np.float32(1) / d if d != np.float32(0) else np.float32(0)


@njit(nogil=True, cache=True, fastmath=False)
def nearest_int(value: np.float32) -> np.float32:
    """C's ``nearest_int``: ties to even, and its own odd results beyond 2**22, for NaN and inf."""
    shifted = np.float32(value + np.float32(12582912.0)).view(np.int32)  # 1.5 * 2**23
    return np.float32(np.int32(np.int32(shifted & np.int32(0x7FFFFF)) - np.int32(0x400000)))


@njit(nogil=True, cache=True, fastmath=False)
def largest_magnitude(bits: NDArray[np.uint32], i: int) -> np.float32:
    """Largest absolute value in block ``i``, given as float32 bit patterns u32[n, block_size].

    As integers, whose maximum LLVM may reorder into SIMD lanes, unlike that of floats.
    """
    peak = np.uint32(0)
    for j in range(bits.shape[1]):
        magnitude = np.uint32(bits[i, j] & _MAGNITUDE)
        peak = magnitude if magnitude > peak else peak
    return np.uint32(peak).view(np.float32)
