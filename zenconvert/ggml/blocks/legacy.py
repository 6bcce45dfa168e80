"""Encoders of the 32-element types Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 without importance weights.

Source: ``quantize_row_*_ref`` in ggml-quants.c; block layouts in :mod:`.legacy_decoders`. With
importance weights :mod:`.legacy_weighted` takes over (Q8_0 makes no use of them).

How it is made fast: the reductions of a block (largest magnitude, range) are done on the bit
patterns as integers, which LLVM may reorder into SIMD lanes, unlike float comparisons; inner loops
run over ``shape[1]`` because LLVM unrolls loops of a small constant length before it vectorises.

Where C converts an infinite or NaN quotient to an integer (blocks whose scale is so small that its
inverse overflows) the x86-64 result is 0, so such blocks get all-zero codes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Encoder
from zenconvert.ggml.blocks.arithmetic import F32_MAX, inverse, largest_magnitude
from zenconvert.ggml.blocks.fields import put_f16, put_u32
from zenconvert.ggml.blocks.legacy_weighted import WEIGHTED
from zenconvert.ggml.types import BY_NAME

Line: TypeAlias = tuple[np.float32, np.float32, np.float32, np.float32]
"""``(low, factor, offset, top)``: the code of x is trunc(min((x - low) factor + offset, top))."""

_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_SIGN: Final = np.uint32(0x80000000)
_LOWEST: Final = np.int32(-0x80000000)
_HIGHEST: Final = np.int32(0x7FFFFFFF)
_BELOW_HALF: Final = np.float32(0.49999997)  # the float before 0.5: x + this truncates as roundf(x)


@njit(nogil=True, cache=True, fastmath=False)
def _signed_peak(bits: NDArray[np.int32], i: int) -> np.float32:
    """The first element of largest magnitude, with its sign; +0 for a block of zeros."""
    top, bottom = _LOWEST, np.uint32(0)
    for j in range(bits.shape[1]):
        value = np.int32(bits[i, j])
        top = value if value > top else top
        unsigned = np.uint32(value)
        bottom = unsigned if unsigned > bottom else bottom
    positive = np.uint32(top) if top > np.int32(0) else np.uint32(0)
    negative = np.uint32(bottom & _MAGNITUDE) if bottom >= _SIGN else np.uint32(0)
    if positive == negative and positive > np.uint32(0):
        for j in range(bits.shape[1]):
            if np.uint32(np.uint32(bits[i, j]) & _MAGNITUDE) == positive:
                return np.int32(bits[i, j]).view(np.float32)
    if negative > positive:
        return np.uint32(negative | _SIGN).view(np.float32)
    return np.uint32(positive).view(np.float32)


@njit(nogil=True, cache=True, fastmath=False)
def _ordered(bits: np.int32) -> np.int32:
    """Map float32 bits to integers in the order of the floats; its own inverse."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & _HIGHEST))


@njit(nogil=True, cache=True, fastmath=False)
def _range(bits: NDArray[np.int32], i: int) -> tuple[np.float32, np.float32]:
    """Least and largest element. A least element of zero has the sign of the first zero."""
    least, largest = _HIGHEST, _LOWEST
    for j in range(bits.shape[1]):
        key = _ordered(bits[i, j])
        least = key if key < least else least
        largest = key if key > largest else largest
    low = np.int32(_ordered(least)).view(np.float32)
    high = np.int32(_ordered(largest)).view(np.float32)
    if low == np.float32(0):
        for j in range(bits.shape[1]):
            if np.uint32(np.uint32(bits[i, j]) & _MAGNITUDE) == np.uint32(0):
                low = np.int32(bits[i, j]).view(np.float32)
                break
    return low, np.float32(high + np.float32(0))  # -0 becomes +0, so that high - low is never -0


@njit(nogil=True, cache=True, fastmath=False)
def _nibbles(weights: NDArray[np.float32], i: int, line: Line, out: NDArray[np.uint8]) -> None:
    """Four-bit codes of one block: elements j and j + 16 share byte j of ``out`` u8[n, 16]."""
    low, factor, offset, top = line
    for j in range(out.shape[1]):
        first = np.uint8(min((weights[i, j] - low) * factor + offset, top))
        second = np.uint8(min((weights[i, j + 16] - low) * factor + offset, top))
        out[i, j] = first | (second << np.uint8(4))


@njit(nogil=True, cache=True, fastmath=False)
def _nibbles_and_fifth_bits(
    weights: NDArray[np.float32], i: int, line: Line, out: NDArray[np.uint8]
) -> np.uint32:
    """Five-bit codes of one block: low nibbles as :func:`_nibbles`, fifth bits returned."""
    low, factor, offset, top = line
    bits = np.uint32(0)
    for j in range(out.shape[1]):
        first = np.uint32(np.int32(min((weights[i, j] - low) * factor + offset, top)))
        second = np.uint32(np.int32(min((weights[i, j + 16] - low) * factor + offset, top)))
        out[i, j] = np.uint8((first & np.uint32(15)) | (second & np.uint32(15)) << np.uint32(4))
        pair = (first >> np.uint32(4)) | (second >> np.uint32(4)) << np.uint32(16)
        bits |= np.uint32(np.uint32(pair) << np.uint32(j))
    return bits


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _symmetric(bits: NDArray[np.int32], i: int, zero: np.float32) -> tuple[np.float32, Line]:
    """Scale and ``line`` (see :data:`Line`) for codes 0 ... 2 zero - 1 around ``zero``."""
    d = np.float32(_signed_peak(bits, i) / -zero)
    factor, offset = inverse(d), zero + np.float32(0.5)
    if abs(factor) > F32_MAX:
        factor, offset = np.float32(0), np.float32(0)
    return d, (np.float32(0), factor, offset, np.float32(2) * zero - np.float32(1))


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _affine(bits: NDArray[np.int32], i: int, top: np.float32) -> tuple[np.float32, Line]:
    """Scale and ``line`` (see :data:`Line`) for codes 0 ... top over the block's range."""
    low, high = _range(bits, i)
    d = np.float32((high - low) / top)
    factor = inverse(d)
    if factor > F32_MAX:
        factor = np.float32(0)
    return d, (low, factor, np.float32(0.5), top)


@njit(nogil=True, cache=True, fastmath=False)
def _q4_0(weights: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = weights.view(np.int32)
    nibbles = out[:, 2:]
    for i in range(weights.shape[0]):
        d, line = _symmetric(bits, i, np.float32(8))
        put_f16(out, i, 0, d)
        _nibbles(weights, i, line, nibbles)


@njit(nogil=True, cache=True, fastmath=False)
def _q5_0(weights: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = weights.view(np.int32)
    nibbles = out[:, 6:]
    for i in range(weights.shape[0]):
        d, line = _symmetric(bits, i, np.float32(16))
        put_f16(out, i, 0, d)
        put_u32(out, i, 2, _nibbles_and_fifth_bits(weights, i, line, nibbles))


@njit(nogil=True, cache=True, fastmath=False)
def _q4_1(weights: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = weights.view(np.int32)
    nibbles = out[:, 4:]
    for i in range(weights.shape[0]):
        d, line = _affine(bits, i, np.float32(15))
        put_f16(out, i, 0, d)
        put_f16(out, i, 2, line[0])
        _nibbles(weights, i, line, nibbles)


@njit(nogil=True, cache=True, fastmath=False)
def _q5_1(weights: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = weights.view(np.int32)
    nibbles = out[:, 8:]
    for i in range(weights.shape[0]):
        d, line = _affine(bits, i, np.float32(31))
        put_f16(out, i, 0, d)
        put_f16(out, i, 2, line[0])
        put_u32(out, i, 4, _nibbles_and_fifth_bits(weights, i, line, nibbles))


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _q8_0(weights: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = weights.view(np.uint32)
    for i in range(weights.shape[0]):
        d = largest_magnitude(bits, i) / np.float32(127)
        factor = inverse(d)
        if factor > F32_MAX:
            factor = np.float32(0)
        put_f16(out, i, 0, d)
        for j in range(weights.shape[1]):
            x = weights[i, j] * factor
            half = -_BELOW_HALF if x < np.float32(0) else _BELOW_HALF
            out[i, 2 + j] = np.uint8(np.int8(x + half))


def _encoder(type_name: str, kernel: Callable[..., None]) -> Encoder:
    """The encoder of one type from its kernel over blocks f32[n, 32] -> u8[n, type_size]."""
    type_size = BY_NAME[type_name].type_size

    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        if importance is not None and type_name in WEIGHTED:
            WEIGHTED[type_name](weights, importance, out)
        else:
            kernel(weights.reshape(-1, 32), out.reshape(-1, type_size))

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    name: _encoder(name, kernel)
    for name, kernel in {
        "q4_0": _q4_0,
        "q4_1": _q4_1,
        "q5_0": _q5_0,
        "q5_1": _q5_1,
        "q8_0": _q8_0,
    }.items()
}
