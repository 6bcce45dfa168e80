"""What the bytes of a block say: codes, steps, and scales of scales, as they are stored.

Layouts and order of elements: ``dequantize_row_*`` in ggml-quants.c; ``b`` below is u8[blocks, …],
of numpy or of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from zenconvert.base.arrays import Array, beside, cast, joined, reinterpreted

IQ4_LEVELS: Final = (
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
)  # fmt: skip
_HALF: Final = np.dtype("<f2")


class Fields(NamedTuple):
    """Of some blocks."""

    codes: Array
    """u8[blocks, elements]."""
    steps: Array
    """float16[blocks]: what scales, or codes where there are none, are multiplied by."""
    scales: Array | None = None
    """Whole numbers[blocks, groups]."""
    offsets: Array | None = None
    """float16[blocks]: what minimums are multiplied by and subtracted; added where there are
    none."""
    minimums: Array | None = None
    """Whole numbers[blocks, groups]."""


def _f16(b: Array, at: int) -> Array:
    """The float16 at a byte of every block."""
    return reinterpreted(b[:, at : at + 2], _HALF)[:, 0]


def _shifted(b: Array, shifts: range, *, before: int) -> Array:
    """Bytes with a new axis of shifts to the right, ``before`` axes from the end of theirs."""
    places = np.array(shifts, dtype=np.uint8).reshape(-1, *[1] * before)
    return b >> beside(places, b)


def halves(b: Array) -> Array:
    """Low nibbles of some bytes, then the high ones."""
    return joined([b & 15, b >> 4])


def _with_fifth_bit(codes: Array, bits: Array) -> Array:
    fifth = _shifted(bits[..., None], range(8), before=0) & 1
    return codes | (fifth.reshape(codes.shape) << 4)


def _q4_0(b: Array) -> Fields:
    return Fields(halves(b[:, 2:]), _f16(b, 0))


def _q5_0(b: Array) -> Fields:
    return Fields(_with_fifth_bit(halves(b[:, 6:]), b[:, 2:6]), _f16(b, 0))


def _q8_0(b: Array) -> Fields:
    return Fields(b[:, 2:] ^ 0x80, _f16(b, 0))


def _q4_1(b: Array) -> Fields:
    return Fields(halves(b[:, 4:]), _f16(b, 0), None, _f16(b, 2))


def _q5_1(b: Array) -> Fields:
    codes = _with_fifth_bit(halves(b[:, 8:]), b[:, 4:8])
    return Fields(codes, _f16(b, 0), None, _f16(b, 2))


def _k_affine(b: Array, codes: Array) -> Fields:
    """Eight scales and eight minimums of six bits in 12 bytes (Q4_K, Q5_K)."""
    low, middle, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = joined([low & 63, (high & 15) | ((low >> 6) << 4)])
    minimums = joined([middle & 63, (high >> 4) | ((middle >> 6) << 4)])
    return Fields(codes, _f16(b, 0), scales, _f16(b, 2), minimums)


def _by_pairs(b: Array) -> Array:
    """32 low nibbles, then the 32 high ones of the same bytes, four times."""
    return halves(b.reshape(len(b), 4, 32)).reshape(len(b), 256)


def _q4_k(b: Array) -> Fields:
    return _k_affine(b, _by_pairs(b[:, 16:144]))


def _q5_k(b: Array) -> Fields:
    fifth = _shifted(b[:, None, 16:48], range(8), before=1) & 1
    return _k_affine(b, _by_pairs(b[:, 48:176]) | (fifth.reshape(len(b), 256) << 4))


def _pairs_of_bits(b: Array) -> Array:
    """Two bits of 32 bytes at shifts 0, 2, 4, 6, for each half of 64 bytes."""
    return _shifted(b.reshape(len(b), 2, 1, 32), range(0, 8, 2), before=1) & 3


def _q2_k(b: Array) -> Fields:
    codes = _pairs_of_bits(b[:, 16:80]).reshape(len(b), 256)
    return Fields(codes, _f16(b, 80), b[:, :16] & 15, _f16(b, 82), b[:, :16] >> 4)


def _q3_k(b: Array) -> Fields:
    third = (_shifted(b[:, None, :32], range(8), before=1) & 1).reshape(len(b), 2, 4, 32)
    codes = _pairs_of_bits(b[:, 32:96]) | (third << 2)
    low = halves(b[:, 96:104])
    high = (_shifted(b[:, None, 104:108], range(0, 8, 2), before=1) & 3).reshape(len(b), 16)
    scales = cast(low | (high << 4), np.int16) - 32
    return Fields(codes.reshape(len(b), 256), _f16(b, 108), scales)


def _q6_k(b: Array) -> Fields:
    low = b[:, :128].reshape(len(b), 2, 2, 32)
    nibbles = joined([low & 15, low >> 4], axis=2)
    high = _pairs_of_bits(b[:, 128:192])
    codes = (nibbles | (high << 4)).reshape(len(b), 256)
    return Fields(codes, _f16(b, 208), reinterpreted(b[:, 192:208], np.int8))


def _iq4_nl(b: Array) -> Fields:
    return Fields(halves(b[:, 2:]), _f16(b, 0))


def _iq4_xs(b: Array) -> Fields:
    nibbles = halves(b[:, 8:].reshape(len(b), 8, 16)).reshape(len(b), 256)
    low = _shifted(b[:, 4:8, None], range(0, 8, 4), before=0).reshape(len(b), 8) & 15
    high = _shifted(b[:, 2:4, None], range(0, 8, 2), before=0).reshape(len(b), 8) & 3
    scales = cast(low | (high << 4), np.int16) - 32
    return Fields(nibbles, _f16(b, 0), scales)


FIELDS: Final[dict[str, Callable[[Array], Fields]]] = {
    "q4_0": _q4_0,
    "q5_0": _q5_0,
    "q8_0": _q8_0,
    "q4_1": _q4_1,
    "q5_1": _q5_1,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
}
"""The fields of blocks u8[blocks, type_size], by type."""
