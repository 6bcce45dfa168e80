"""float16 bits ↔ float32 inside Numba kernels: round to nearest even, as ggml-impl.h does it."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, fastmath=False)
def f32_to_f16_bits(value: np.float32) -> np.uint16:
    """The float16 nearest to ``value``, ties to even; NaN becomes 0x7e00 with its sign."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint32(0x7E00))
    if magnitude >= np.uint32(0x477FF000):  # 65520 and more round to infinity
        return np.uint16(sign | np.uint32(0x7C00))
    if magnitude < np.uint32(0x38800000):  # below 2^-14: a subnormal counts units of 2^-24
        scaled = np.float32(np.uint32(magnitude).view(np.float32) * np.float32(16777216.0))
        # adding and removing 2^23 rounds to an integer, ties to even
        whole = (scaled + np.float32(8388608.0)) - np.float32(8388608.0)
        return np.uint16(sign | np.uint32(whole))
    odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(magnitude + np.uint32(0xFFF) + odd)
    return np.uint16(sign | np.uint32((rounded - np.uint32(0x38000000)) >> np.uint32(13)))


@njit(nogil=True, cache=True, fastmath=False)
def f16_bits_to_f32(bits: np.uint16) -> np.float32:
    """The exact float32 of a float16."""
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    exponent = np.uint32((bits >> np.uint16(10)) & np.uint16(31))
    fraction = np.uint32(bits & np.uint16(0x3FF))
    if exponent == np.uint32(0):
        value = np.float32(np.float32(fraction) * np.float32(5.9604644775390625e-08))  # 2^-24
        return np.uint32(np.float32(value).view(np.uint32) | sign).view(np.float32)
    if exponent == np.uint32(31):
        whole = np.uint32(sign | np.uint32(0x7F800000) | (fraction << np.uint32(13)))
        return np.uint32(whole).view(np.float32)
    whole = np.uint32(
        sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (fraction << np.uint32(13))
    )
    return np.uint32(whole).view(np.float32)
