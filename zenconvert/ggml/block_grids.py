"""Block types whose numbers are small integers times a scale, plus a minimum where they have one.

Scales of scales and tables of integers are multiplied out: a K-quant block becomes groups with
float32 scales (exact: 11 bits times 4 to 8), a table lookup its int8 value. What a type decodes to
is kept bit for bit.

Layouts and order of elements: ``dequantize_row_*`` in ggml-quants.c; ``b`` below is u8[blocks, …],
of numpy or of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from zenconvert.base.arrays import Array, beside, cast, joined, reinterpreted, taken
from zenconvert.model.encoding import F16, F32, Grouped
from zenconvert.model.grouped import GroupedRows

Parts = tuple[Array, Array, Array | None]
"""Codes u8[blocks, elements], scales and any offsets float[blocks, groups]."""

_IQ4_LEVELS: Final = (
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
)  # fmt: skip
_FP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_E8M0_HALVES: Final = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)
"""``2 ** (e - 127)``, halved as the table above is doubled."""
_HALF: Final = np.dtype("<f2")


def _f16(b: Array, at: int) -> Array:
    """The float16 at a byte of every block."""
    return reinterpreted(b[:, at : at + 2], _HALF)[:, 0]


def _shifted(b: Array, shifts: range, *, before: int) -> Array:
    """Bytes with a new axis of shifts to the right, ``before`` axes from the end of theirs."""
    places = np.array(shifts, dtype=np.uint8).reshape(-1, *[1] * before)
    return b >> beside(places, b)


def _halves(b: Array) -> Array:
    """Low nibbles of some bytes, then the high ones."""
    return joined([b & 15, b >> 4])


def _with_fifth_bit(codes: Array, bits: Array) -> Array:
    fifth = _shifted(bits[..., None], range(8), before=0) & 1
    return codes | (fifth.reshape(codes.shape) << 4)


def _q4_0(b: Array) -> Parts:
    return _halves(b[:, 2:]), _f16(b, 0)[:, None], None


def _q5_0(b: Array) -> Parts:
    return _with_fifth_bit(_halves(b[:, 6:]), b[:, 2:6]), _f16(b, 0)[:, None], None


def _q8_0(b: Array) -> Parts:
    return b[:, 2:] ^ 0x80, _f16(b, 0)[:, None], None


def _q4_1(b: Array) -> Parts:
    return _halves(b[:, 4:]), _f16(b, 0)[:, None], _f16(b, 2)[:, None]


def _q5_1(b: Array) -> Parts:
    codes = _with_fifth_bit(_halves(b[:, 8:]), b[:, 4:8])
    return codes, _f16(b, 0)[:, None], _f16(b, 2)[:, None]


def _scaled(factor: Array, integers: Array) -> Array:
    """``factor · integer`` of every group, exact in float32."""
    return cast(factor, np.float32)[:, None] * cast(integers, np.float32)


def _k_scales(b: Array) -> tuple[Array, Array]:
    """Eight scales and eight minimums of six bits in 12 bytes (Q4_K, Q5_K)."""
    low, middle, high = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = joined([low & 63, (high & 15) | ((low >> 6) << 4)])
    minimums = joined([middle & 63, (high >> 4) | ((middle >> 6) << 4)])
    return scales, minimums


def _k_affine(b: Array, codes: Array) -> Parts:
    scales, minimums = _k_scales(b[:, 4:16])
    return codes, _scaled(_f16(b, 0), scales), -_scaled(_f16(b, 2), minimums)


def _by_pairs(b: Array) -> Array:
    """32 low nibbles, then the 32 high ones of the same bytes, four times."""
    return _halves(b.reshape(len(b), 4, 32)).reshape(len(b), 256)


def _q4_k(b: Array) -> Parts:
    return _k_affine(b, _by_pairs(b[:, 16:144]))


def _q5_k(b: Array) -> Parts:
    fifth = _shifted(b[:, None, 16:48], range(8), before=1) & 1
    return _k_affine(b, _by_pairs(b[:, 48:176]) | (fifth.reshape(len(b), 256) << 4))


def _pairs_of_bits(b: Array) -> Array:
    """Two bits of 32 bytes at shifts 0, 2, 4, 6, for each half of 64 bytes."""
    return _shifted(b.reshape(len(b), 2, 1, 32), range(0, 8, 2), before=1) & 3


def _q2_k(b: Array) -> Parts:
    codes = _pairs_of_bits(b[:, 16:80]).reshape(len(b), 256)
    scales = _scaled(_f16(b, 80), b[:, :16] & 15)
    return codes, scales, -_scaled(_f16(b, 82), b[:, :16] >> 4)


def _q3_k(b: Array) -> Parts:
    third = (_shifted(b[:, None, :32], range(8), before=1) & 1).reshape(len(b), 2, 4, 32)
    codes = _pairs_of_bits(b[:, 32:96]) | (third << 2)
    low = _halves(b[:, 96:104])
    high = (_shifted(b[:, None, 104:108], range(0, 8, 2), before=1) & 3).reshape(len(b), 16)
    scales = cast(low | (high << 4), np.int16) - 32
    return codes.reshape(len(b), 256), _scaled(_f16(b, 108), scales), None


def _q6_k(b: Array) -> Parts:
    low = b[:, :128].reshape(len(b), 2, 2, 32)
    nibbles = joined([low & 15, low >> 4], axis=2)
    high = _pairs_of_bits(b[:, 128:192])
    codes = (nibbles | (high << 4)).reshape(len(b), 256)
    return codes, _scaled(_f16(b, 208), reinterpreted(b[:, 192:208], np.int8)), None


def _levels(nibbles: Array, levels: tuple[int, ...]) -> Array:
    """Values of a table as codes around 128."""
    codes = (np.array(levels, dtype=np.int16) + 128).astype(np.uint8)
    return taken(beside(codes, nibbles), nibbles)


def _iq4_nl(b: Array) -> Parts:
    return _levels(_halves(b[:, 2:]), _IQ4_LEVELS), _f16(b, 0)[:, None], None


def _iq4_xs(b: Array) -> Parts:
    nibbles = _halves(b[:, 8:].reshape(len(b), 8, 16)).reshape(len(b), 256)
    low = _shifted(b[:, 4:8, None], range(0, 8, 4), before=0).reshape(len(b), 8) & 15
    high = _shifted(b[:, 2:4, None], range(0, 8, 2), before=0).reshape(len(b), 8) & 3
    scales = cast(low | (high << 4), np.int16) - 32
    return _levels(nibbles, _IQ4_LEVELS), _scaled(_f16(b, 0), scales), None


def _mxfp4(b: Array) -> Parts:
    scales = taken(beside(_E8M0_HALVES, b), b[:, :1])
    return _levels(_halves(b[:, 1:]), _FP4_LEVELS), scales, None


_TYPES: Final[dict[str, tuple[Grouped, int, Callable[[Array], Parts]]]] = {
    "q4_0": (Grouped(4, 32, True), 32, _q4_0),
    "q5_0": (Grouped(5, 32, True), 32, _q5_0),
    "q8_0": (Grouped(8, 32, True), 32, _q8_0),
    "q4_1": (Grouped(4, 32, False, offset=F16), 32, _q4_1),
    "q5_1": (Grouped(5, 32, False, offset=F16), 32, _q5_1),
    "q2_k": (Grouped(2, 16, False, F32, offset=F32), 256, _q2_k),
    "q3_k": (Grouped(3, 16, True, F32), 256, _q3_k),
    "q4_k": (Grouped(4, 32, False, F32, offset=F32), 256, _q4_k),
    "q5_k": (Grouped(5, 32, False, F32, offset=F32), 256, _q5_k),
    "q6_k": (Grouped(6, 16, True, F32), 256, _q6_k),
    "iq4_nl": (Grouped(8, 32, True), 32, _iq4_nl),
    "iq4_xs": (Grouped(8, 32, True, F32), 256, _iq4_xs),
    "mxfp4": (Grouped(8, 32, True, F32), 32, _mxfp4),
}
GRIDS: Final[dict[str, Grouped]] = {name: grid for name, (grid, _, _) in _TYPES.items()}
"""What the numbers of every type lie on."""


def to_grouped(type_name: str, blocks: Array, columns: int) -> GroupedRows:
    """Block bytes u8[rows, row_bytes] of a type of :data:`GRIDS` as grouped rows, bit for bit.

    Of numpy or of torch, as the blocks are.
    """
    grid, size, parts = _TYPES[type_name]
    rows = len(blocks)
    codes, scales, offsets = parts(blocks.reshape(rows * (columns // size), -1))
    return GroupedRows(
        grid.bits,
        codes.reshape(rows, columns),
        scales.reshape(rows, -1),
        None,
        grid.group,
        offsets=None if offsets is None else offsets.reshape(rows, -1),
    )
