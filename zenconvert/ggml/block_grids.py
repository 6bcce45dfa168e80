"""Block types whose numbers are small integers times a scale, plus a minimum where they have one.

Scales of scales and tables of integers are multiplied out: a K-quant block becomes groups with
float32 scales (exact: 11 bits times 4 to 8), a table lookup its int8 value. What a type decodes to
is kept bit for bit.

Layouts and order of elements: ``dequantize_row_*`` in ggml-quants.c; ``b`` below is u8[blocks, …].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.model.encoding import F16, F32, Grouped
from zenconvert.model.grouped import GroupedRows

Bytes = NDArray[np.uint8]
Floats = NDArray[Any]
Parts = tuple[Bytes, Floats, Floats | None]
"""Codes u8[blocks, elements], scales and any offsets float[blocks, groups]."""

_IQ4_LEVELS: Final = (
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
)  # fmt: skip
_FP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_FOUR: Final = np.uint8(4)
_LOW: Final = np.uint8(15)


def _f16(b: Bytes, at: int) -> NDArray[np.float16]:
    """The float16 at a byte of every block."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2")[:, 0]


def _halves(b: Bytes) -> Bytes:
    """Low nibbles of some bytes, then the high ones."""
    return np.concatenate([b & _LOW, b >> _FOUR], axis=-1)


def _with_fifth_bit(codes: Bytes, bits: Bytes) -> Bytes:
    return codes | (np.unpackbits(bits, axis=-1, bitorder="little") << _FOUR)


def _q4_1(b: Bytes) -> Parts:
    return _halves(b[:, 4:]), _f16(b, 0)[:, None], _f16(b, 2)[:, None]


def _q5_1(b: Bytes) -> Parts:
    codes = _with_fifth_bit(_halves(b[:, 8:]), b[:, 4:8])
    return codes, _f16(b, 0)[:, None], _f16(b, 2)[:, None]


def _scaled(factor: NDArray[np.float16], integers: NDArray[Any]) -> NDArray[np.float32]:
    """``factor · integer`` of every group, exact in float32."""
    return factor.astype(np.float32)[:, None] * integers.astype(np.float32)


def _k_scales(b: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minimums of six bits in 12 bytes (Q4_K, Q5_K)."""
    low, middle, high = b[:, :4], b[:, 4:8], b[:, 8:]
    six, two = np.uint8(63), np.uint8(6)
    scales = np.concatenate([low & six, (high & _LOW) | ((low >> two) << _FOUR)], axis=1)
    minimums = np.concatenate([middle & six, (high >> _FOUR) | ((middle >> two) << _FOUR)], axis=1)
    return scales, minimums


def _k_affine(b: Bytes, codes: Bytes) -> Parts:
    scales, minimums = _k_scales(b[:, 4:16])
    return codes, _scaled(_f16(b, 0), scales), -_scaled(_f16(b, 2), minimums)


def _by_pairs(b: Bytes) -> Bytes:
    """32 low nibbles, then the 32 high ones of the same bytes, four times."""
    return _halves(b.reshape(len(b), 4, 32)).reshape(len(b), 256)


def _q4_k(b: Bytes) -> Parts:
    return _k_affine(b, _by_pairs(b[:, 16:144]))


def _q5_k(b: Bytes) -> Parts:
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (b[:, None, 16:48] >> shifts) & np.uint8(1)
    return _k_affine(b, _by_pairs(b[:, 48:176]) | (fifth.reshape(len(b), 256) << _FOUR))


def _pairs_of_bits(b: Bytes) -> Bytes:
    """Two bits of 32 bytes at shifts 0, 2, 4, 6, for each half of 64 bytes."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[None, None, :, None]
    return (b.reshape(len(b), 2, 1, 32) >> shifts) & np.uint8(3)


def _q2_k(b: Bytes) -> Parts:
    codes = _pairs_of_bits(b[:, 16:80]).reshape(len(b), 256)
    scales = _scaled(_f16(b, 80), b[:, :16] & _LOW)
    return codes, scales, -_scaled(_f16(b, 82), b[:, :16] >> _FOUR)


def _q3_k(b: Bytes) -> Parts:
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    third = (b[:, None, None, :32] >> shifts) & np.uint8(1)
    codes = _pairs_of_bits(b[:, 32:96]) | (third << np.uint8(2))
    low = _halves(b[:, 96:104])
    places = np.arange(0, 8, 2, dtype=np.uint8)[None, :, None]
    high = ((b[:, None, 104:108] >> places) & np.uint8(3)).reshape(len(b), 16)
    scales = (low | (high << _FOUR)).astype(np.int16) - 32
    return codes.reshape(len(b), 256), _scaled(_f16(b, 108), scales), None


def _q6_k(b: Bytes) -> Parts:
    low = b[:, :128].reshape(len(b), 2, 2, 32)
    nibbles = np.concatenate([low & _LOW, low >> _FOUR], axis=2)
    high = _pairs_of_bits(b[:, 128:192])
    codes = (nibbles | (high << _FOUR)).reshape(len(b), 256)
    return codes, _scaled(_f16(b, 208), b[:, 192:208].view(np.int8)), None


def _levels(nibbles: Bytes, levels: tuple[int, ...]) -> Bytes:
    """Values of a table as codes around 128."""
    return (np.array(levels, dtype=np.int16) + 128).astype(np.uint8)[nibbles]


def _iq4_nl(b: Bytes) -> Parts:
    return _levels(_halves(b[:, 2:]), _IQ4_LEVELS), _f16(b, 0)[:, None], None


def _iq4_xs(b: Bytes) -> Parts:
    nibbles = _halves(b[:, 8:].reshape(len(b), 8, 16)).reshape(len(b), 256)
    low = np.stack([b[:, 4:8] & _LOW, b[:, 4:8] >> _FOUR], axis=2).reshape(len(b), 8)
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = (low | ((high & 3).astype(np.uint8) << _FOUR)).astype(np.int16) - 32
    return _levels(nibbles, _IQ4_LEVELS), _scaled(_f16(b, 0), scales), None


def _mxfp4(b: Bytes) -> Parts:
    scales = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)
    return _levels(_halves(b[:, 1:]), _FP4_LEVELS), scales.astype(np.float32), None


_TYPES: Final[dict[str, tuple[Grouped, int, Callable[[Bytes], Parts]]]] = {
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


def to_grouped(type_name: str, blocks: Bytes, columns: int) -> GroupedRows:
    """Block bytes u8[rows, row_bytes] of a type of :data:`GRIDS` as grouped rows."""
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
