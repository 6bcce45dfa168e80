"""IEEE 754 binary16 as bit patterns, for use inside compiled kernels.

Both functions agree with ggml's software conversion (ggml-impl.h) for every finite value and for
infinities; every NaN becomes 0x7E00 with its sign. They are free of branches, so that loops over
them vectorise.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zenconvert.base.compiling import njit

_SIGN: Final = np.uint32(0x8000)
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_F32_INFINITY: Final = np.uint32(0x7F800000)
_OVERFLOW: Final = np.uint32(0x477FF000)  # 65520: halfway between 65504 and 65536
_F16_NORMAL: Final = np.uint32(0x38800000)  # 2**-14
_F16_NAN: Final = np.uint32(0x7E00)
_F16_INFINITY: Final = np.uint32(0x7C00)
_REBIAS: Final = np.uint32(0x38000000)  # (127 - 15) << 23
_ALMOST_HALF: Final = np.uint32(0xFFF)  # of the 13 bits that are cut off
_DROPPED: Final = np.uint32(13)
_ALIGN: Final = np.float32(0.5)  # its last mantissa bit is 2**-24, the smallest float16
_ALIGN_BITS: Final = np.uint32(0x3F000000)
_SCALE: Final = np.float32(2.0**112)


@njit(nogil=True, cache=True, fastmath=False)
def f32_to_f16_bits(x: np.float32) -> np.uint16:
    """Round float32 to the bits of the nearest float16, ties to even."""
    bits = np.float32(x).view(np.uint32)
    sign = np.uint32(bits >> np.uint32(16)) & _SIGN
    magnitude = np.uint32(bits & _MAGNITUDE)
    odd = np.uint32(np.uint32(magnitude >> _DROPPED) & np.uint32(1))
    rounded = np.uint32(np.uint32(magnitude - _REBIAS) + np.uint32(_ALMOST_HALF + odd))
    normal = np.uint32(rounded >> _DROPPED)
    # The addition itself rounds a subnormal result to a multiple of 2**-24.
    shifted = np.float32(magnitude.view(np.float32) + _ALIGN)
    subnormal = np.uint32(shifted.view(np.uint32) - _ALIGN_BITS)
    result = normal if magnitude >= _F16_NORMAL else subnormal
    result = _F16_INFINITY if magnitude >= _OVERFLOW else result
    result = _F16_NAN if magnitude > _F32_INFINITY else result
    return np.uint16(result | sign)


@njit(nogil=True, cache=True, fastmath=False)
def f16_bits_to_f32(h: np.uint16) -> np.float32:
    """The float32 of the same value as the float16 with these bits."""
    bits = np.uint32(h)
    sign = np.uint32(np.uint32(bits & _SIGN) << np.uint32(16))
    shifted = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << _DROPPED)
    # Read as float32 the value is 2**112 too small, subnormal ones included.
    finite = np.uint32(np.float32(shifted.view(np.float32) * _SCALE).view(np.uint32))
    special = np.uint32(shifted | _F32_INFINITY)
    is_special = np.uint32(bits & _F16_INFINITY) == _F16_INFINITY
    return np.uint32((special if is_special else finite) | sign).view(np.float32)
