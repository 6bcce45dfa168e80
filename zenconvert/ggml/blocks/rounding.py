"""Rounding of sixteen float32 to whole numbers, as ``nearest_int`` of ggml-quants.c does it.

Adding 1.5 * 2**23 leaves the whole number, rounded to even, in the mantissa. Beyond 4194303, and
for infinity and NaN, C reads whatever the mantissa then holds; so do these functions.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.lanes import (
    Floats,
    Ints,
    bits_of,
    floats_of_bits,
    select,
    splat,
)

_MAGIC: Final = np.float32(12582912)
_MANTISSA: Final = np.int32(0x7FFFFF)
_MIDDLE: Final = np.int32(0x400000)
_EXPONENT: Final = np.int32(0x4B000000)  # of 2**23 ... 2**24, where the last bit is worth 1


@njit(nogil=True, fastmath=False, forceinline=True)
def nearest(x: Floats) -> Ints:
    """``nearest_int(x)``."""
    return (bits_of(x + _MAGIC) & _MANTISSA) - _MIDDLE


@njit(nogil=True, fastmath=False, forceinline=True)
def nearest_within(x: Floats, least: np.float32, most: np.float32) -> Floats:
    """``MAX(least, MIN(most, nearest_int(x)))`` for whole bounds."""
    shifted = floats_of_bits((bits_of(x + _MAGIC) & _MANTISSA) | _EXPONENT)
    low = splat(np.float32(_MAGIC + least))
    high = splat(np.float32(_MAGIC + most))
    shifted = select(shifted > low, shifted, low)
    return select(shifted < high, shifted, high) - _MAGIC


@njit(nogil=True, fastmath=False, forceinline=True)
def at_most(x: Ints, most: np.int32) -> Ints:
    """``MIN(most, x)``."""
    return select(x < most, x, splat(most))
