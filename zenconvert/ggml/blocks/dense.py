"""Plain numbers: one element is one float or integer, little-endian.

float32 to float16 and bfloat16 round to nearest, ties to even. In bfloat16 a NaN keeps its sign and
upper payload and becomes quiet, as ggml does it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder, Encoder
from zenconvert.ggml.blocks.half import f16_bits_to_f32, f32_to_f16_bits


@njit(nogil=True, cache=True, fastmath=False)
def _to_f16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    for i in range(values.size):
        out[i] = f32_to_f16_bits(values[i])


@njit(nogil=True, cache=True, fastmath=False)
def _to_bf16(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    for i in range(bits.size):
        upper = bits[i] >> np.uint32(16)
        rounded = (bits[i] + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
        is_nan = (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(upper | np.uint32(64) if is_nan else rounded)


@njit(nogil=True, cache=True, fastmath=False)
def _from_f16(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(bits.size):
        out[i] = f16_bits_to_f32(bits[i])


def _encode_f32(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    out[:] = weights.view(np.uint8)


def _encode_f16(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    _to_f16(weights.reshape(-1), out.reshape(-1).view(np.uint16))


def _encode_bf16(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    _to_bf16(weights.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint16))


def _decoder(dtype: type[np.generic]) -> Decoder:
    def decode(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        numbers: NDArray[Any] = blocks.view(dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 is infinite
            out[:] = numbers

    return decode


def _decode_f16(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    _from_f16(blocks.reshape(-1).view(np.uint16), out.reshape(-1))


def _decode_bf16(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    np.left_shift(blocks.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)


ENCODERS: Final[dict[str, Encoder]] = {
    "f32": _encode_f32,
    "f16": _encode_f16,
    "bf16": _encode_bf16,
}
DECODERS: Final[dict[str, Decoder]] = {
    "f64": _decoder(np.float64),
    "f32": _decoder(np.float32),
    "f16": _decode_f16,
    "bf16": _decode_bf16,
    "i64": _decoder(np.int64),
    "i32": _decoder(np.int32),
    "i16": _decoder(np.int16),
    "i8": _decoder(np.int8),
}
