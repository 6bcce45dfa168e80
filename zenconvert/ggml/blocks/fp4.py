"""MXFP4 and NVFP4: blocks of four-bit floats (E2M1), encoders and decoders.

Source: ``quantize_row_*_ref`` and ``dequantize_row_*`` in ggml-quants.c, scales in ggml-impl.h.
Layouts (ggml-common.h)::

    mxfp4  e u8, qs[16]        32 elements, x = 2**(e - 128) VALUES[q]
    nvfp4  d u8[4], qs[4][8]   4 x 16 elements, x = UE4M3(d) / 2 VALUES[q]

The table holds twice the E2M1 values and the scales are halved. Elements j and j + half of a block
share byte j. Code 8 is -0, which the encoders never write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder, Encoder
from zenconvert.ggml.blocks.arithmetic import largest_magnitude

_SIZES: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12], dtype=np.float32)
# Integers in C, so code 8 decodes to +0.
_VALUES: Final = np.concatenate([_SIZES, np.float32(0) - _SIZES])
_ZERO: Final = np.float32(0)


def _ue4m3_halves() -> NDArray[np.float32]:
    """Half the value of each unsigned E4M3 byte (bias 7); ggml reads NaN (0x7f) as 0."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), normal)
    values[0x7F] = 0
    halves: NDArray[np.float32] = (values / 2).astype(np.float32)
    return halves


_UE4M3_HALVES: Final = _ue4m3_halves()


@njit(nogil=True, cache=True, fastmath=False)
def _ue4m3(x: np.float32) -> np.uint8:
    """Nearest unsigned E4M3 of x >= 0; half a step rounds up, from 256 on it is always 448."""
    bits = np.int32(np.float32(x).view(np.int32))
    exponent = (bits >> 23) - 127 + 7
    if exponent <= 0:
        mantissa = np.int32(x * np.float32(512) + np.float32(0.5))
        return np.uint8(mantissa if mantissa < 7 else 7)
    # Rounding may carry from the mantissa into the exponent.
    code = (exponent << 3) + ((bits >> 20) & 7) + ((bits >> 19) & 1)
    return np.uint8(code if code < 0x78 else 0x7E)


@njit(nogil=True, cache=True, fastmath=False)
def _mxfp4_scale(e: np.uint8) -> np.float32:
    """Half of 2**(e - 127); subnormal for e < 2."""
    bits = np.uint32(e - np.uint8(1)) << np.uint32(23)
    subnormal = np.uint32(0x00200000) << np.uint32(e)
    return np.uint32(bits if e >= np.uint8(2) else subnormal).view(np.float32)


@njit(nogil=True, cache=True, fastmath=False)
def _code(x: np.float32, scale: np.float32) -> np.uint8:
    """The nearest of 16 values times ``scale``; the smaller magnitude when two are as near."""
    size = abs(x)
    best, code = size, np.uint8(0)
    for k in range(1, 8):
        error = abs(_SIZES[k] * scale - size)
        code = np.uint8(k) if error < best else code
        best = error if error < best else best
    return np.uint8(code + np.uint8(8)) if x < _ZERO and code > np.uint8(0) else code


@njit(nogil=True, cache=True, fastmath=False)
def _encode_mxfp4(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits, nibbles = blocks.view(np.uint32), out[:, 1:]
    for i in range(blocks.shape[0]):
        peak, e = largest_magnitude(bits, i), np.uint8(0)
        if peak > _ZERO:
            # log2f, whose rounding up below a power of two is part of the format's reference.
            # The int32 is for peaks under 2**-125, where C wraps a negative number to uint8.
            exponent = np.float32(math.floor(math.log2(peak))) + np.float32(125)
            e = np.uint8(np.int32(exponent))
        scale = _mxfp4_scale(e)
        out[i, 0] = e
        for j in range(nibbles.shape[1]):
            low, high = _code(blocks[i, j], scale), _code(blocks[i, j + 16], scale)
            nibbles[i, j] = low | (high << np.uint8(4))


@njit(nogil=True, cache=True, fastmath=False)
def _encode_nvfp4(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """``blocks`` f32[4 n, 16] are the sub-blocks."""
    bits = blocks.view(np.uint32)
    for i in range(blocks.shape[0]):
        block, part = divmod(i, 4)
        scale_code = _ue4m3(np.float32(largest_magnitude(bits, i) / np.float32(6)))
        scale = _UE4M3_HALVES[scale_code]
        out[block, part] = scale_code
        for j in range(8):
            low, high = _code(blocks[i, j], scale), _code(blocks[i, j + 8], scale)
            out[block, 4 + 8 * part + j] = low | (high << np.uint8(4))


@njit(nogil=True, cache=True, fastmath=False)
def _decode_mxfp4(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        scale = _mxfp4_scale(blocks[i, 0])
        for j in range(16):
            byte = blocks[i, 1 + j]
            out[i, j] = _VALUES[byte & np.uint8(15)] * scale
            out[i, j + 16] = _VALUES[byte >> np.uint8(4)] * scale


@njit(nogil=True, cache=True, fastmath=False)
def _decode_nvfp4(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        for part in range(4):
            scale = _UE4M3_HALVES[blocks[i, part]]
            for j in range(8):
                byte = blocks[i, 4 + 8 * part + j]
                out[i, 16 * part + j] = _VALUES[byte & np.uint8(15)] * scale
                out[i, 16 * part + j + 8] = _VALUES[byte >> np.uint8(4)] * scale


def _encoder(kernel: Callable[..., None], kernel_block: int, type_size: int) -> Encoder:
    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        kernel(weights.reshape(-1, kernel_block), out.reshape(-1, type_size))

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    "mxfp4": _encoder(_encode_mxfp4, 32, 17),
    "nvfp4": _encoder(_encode_nvfp4, 16, 36),
}
DECODERS: Final[dict[str, Decoder]] = {"mxfp4": _decode_mxfp4, "nvfp4": _decode_nvfp4}
