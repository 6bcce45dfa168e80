"""One scale and codes of at most two bits: TQ1_0 TQ2_0 Q2_0 Q1_0, encoders and decoders.

Source: ``quantize_row_*_ref`` and ``dequantize_row_*`` in ggml-quants.c. Layouts (ggml-common.h),
d float16::

    tq1_0  qs[48], qh[4], d   256 elements, five ternary digits a byte (four in qh)
    tq2_0  qs[64], d          256 elements, x = (q - 1) d; byte m of 32 holds m, m + 32, ...
    q2_0   d, qs[16]          64 elements, x = (q - 1) d, four consecutive elements a byte
    q1_0   d, qs[16]          128 elements, x = d or -d, eight consecutive elements a byte

A byte of TQ1_0 is the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded up to 1/256. C rounds the
quotient x / d halfway cases away from zero; where the inverse of d overflows it gets 0 for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks import Decoder, Encoder
from zenconvert.ggml.blocks.arithmetic import F32_MAX, inverse, largest_magnitude
from zenconvert.ggml.blocks.fields import f16_at, put_f16

_ZERO: Final = np.float32(0)
_HALF: Final = np.float32(0.5)


@njit(nogil=True, cache=True, fastmath=False)
def _finite_inverse(d: np.float32) -> np.float32:
    """1 / d; 0 where d is 0 or so small that the inverse overflows."""
    result = inverse(d)
    return result if result <= F32_MAX else _ZERO


@njit(nogil=True, cache=True, fastmath=False)
def _digit(quotient: np.float32) -> np.uint8:
    """0, 1 or 2 for a quotient that rounds to -1, 0 or 1."""
    return np.uint8(np.uint8(1) + np.uint8(quotient >= _HALF) - np.uint8(quotient <= -_HALF))


@njit(nogil=True, cache=True, fastmath=False)
def _fraction(number: np.uint32) -> np.uint8:
    """Five ternary digits as a fraction of 256, rounded up."""
    return np.uint8((np.uint32(number) * np.uint32(256) + np.uint32(242)) // np.uint32(243))


@njit(nogil=True, cache=True, fastmath=False)
def _encode_tq1_0(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits, digits = blocks.view(np.uint32), np.empty(256, dtype=np.uint8)
    for i in range(blocks.shape[0]):
        d = largest_magnitude(bits, i)
        scale = _finite_inverse(d)
        put_f16(out, i, 52, d)
        for j in range(256):
            digits[j] = _digit(blocks[i, j] * scale)
        for start, width, at in ((0, 32, 0), (160, 16, 32), (240, 4, 48)):
            for m in range(width):
                number = np.uint32(0)
                for n in range(4):
                    number = np.uint32(number * np.uint32(3) + digits[start + n * width + m])
                # qh has four digits a byte; its fifth is 0.
                fifth = digits[start + 4 * width + m] if at < 48 else np.uint8(0)
                out[i, at + m] = _fraction(np.uint32(number * np.uint32(3) + fifth))


@njit(nogil=True, cache=True, fastmath=False)
def _encode_tq2_0(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = blocks.view(np.uint32)
    for i in range(blocks.shape[0]):
        d = largest_magnitude(bits, i)
        scale = _finite_inverse(d)
        put_f16(out, i, 64, d)
        for half in range(2):
            for m in range(32):
                byte = np.uint8(0)
                for n in range(4):
                    digit = _digit(blocks[i, 128 * half + 32 * n + m] * scale)
                    byte |= np.uint8(digit << np.uint8(2 * n))
                out[i, 32 * half + m] = byte


@njit(nogil=True, cache=True, fastmath=False)
def _encode_q2_0(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    bits = blocks.view(np.uint32)
    for i in range(blocks.shape[0]):
        d = largest_magnitude(bits, i)
        scale = _finite_inverse(d)
        overflows = scale == _ZERO and d > _ZERO  # C then gets the least code everywhere
        put_f16(out, i, 0, d)
        for j in range(16):
            byte = np.uint8(0)
            for n in range(4):
                digit = _digit(blocks[i, 4 * j + n] * scale)
                byte |= np.uint8(digit << np.uint8(2 * n))
            out[i, 2 + j] = np.uint8(0) if overflows else byte


@njit(nogil=True, cache=True, fastmath=False)
def _encode_q1_0(blocks: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    for i in range(blocks.shape[0]):
        total = _ZERO
        for j in range(128):
            total += abs(blocks[i, j])
        put_f16(out, i, 0, total / np.float32(128))
        for j in range(16):
            byte = np.uint8(0)
            for n in range(8):
                byte |= np.uint8(np.uint8(blocks[i, 8 * j + n] >= _ZERO) << np.uint8(n))
            out[i, 2 + j] = byte


@njit(nogil=True, cache=True, fastmath=False)
def _decode_tq1_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 52)
        for start, width, at in ((0, 32, 0), (160, 16, 32), (240, 4, 48)):
            power = np.uint8(1)
            for n in range(5 if at < 48 else 4):
                for m in range(width):
                    rest = np.uint8(blocks[i, at + m] * power)
                    digit = (np.uint16(rest) * np.uint16(3)) >> np.uint16(8)
                    out[i, start + n * width + m] = (np.float32(digit) - np.float32(1)) * d
                power = np.uint8(power * np.uint8(3))


@njit(nogil=True, cache=True, fastmath=False)
def _decode_tq2_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 64)
        for half in range(2):
            for n in range(4):
                for m in range(32):
                    code = (blocks[i, 32 * half + m] >> np.uint8(2 * n)) & np.uint8(3)
                    out[i, 128 * half + 32 * n + m] = (np.float32(code) - np.float32(1)) * d


@njit(nogil=True, cache=True, fastmath=False)
def _decode_q2_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(64):
            code = (blocks[i, 2 + j // 4] >> np.uint8(2 * (j % 4))) & np.uint8(3)
            out[i, j] = (np.float32(code) - np.float32(1)) * d


@njit(nogil=True, cache=True, fastmath=False)
def _decode_q1_0(blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    for i in range(blocks.shape[0]):
        d = f16_at(blocks, i, 0)
        for j in range(128):
            positive = (blocks[i, 2 + j // 8] >> np.uint8(j % 8)) & np.uint8(1)
            out[i, j] = d if positive else -d


def _encoder(kernel: Callable[..., None], block_size: int) -> Encoder:
    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        blocks = weights.reshape(-1, block_size)
        kernel(blocks, out.reshape(len(blocks), -1))

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    "tq1_0": _encoder(_encode_tq1_0, 256),
    "tq2_0": _encoder(_encode_tq2_0, 256),
    "q2_0": _encoder(_encode_q2_0, 64),
    "q1_0": _encoder(_encode_q1_0, 128),
}
DECODERS: Final[dict[str, Decoder]] = {
    "tq1_0": _decode_tq1_0,
    "tq2_0": _decode_tq2_0,
    "q2_0": _decode_q2_0,
    "q1_0": _decode_q1_0,
}
