"""Block types whose codes, scales and steps may be chosen freely: bytes to numbers and back.

``to_nested`` and ``from_nested`` are inverses, bit for bit. Layouts: ``block_*`` in ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml.block_fields import FIELDS, IQ4_LEVELS
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.nested import NestedGrid, NestedRows

_Bytes = NDArray[Any]
"""u8."""
_SIX: Final = (0, 63)
_AROUND: Final = (-32, 31)
_ONE: Final = (1, 1)


def _from(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1))


GRIDS: Final[dict[str, NestedGrid]] = {
    "q4_0": NestedGrid(32, 32, _from(-8, 7)),
    "q5_0": NestedGrid(32, 32, _from(-16, 15)),
    "q4_1": NestedGrid(32, 32, _from(0, 15), minimums=_ONE),
    "q5_1": NestedGrid(32, 32, _from(0, 31), minimums=_ONE),
    "q2_k": NestedGrid(16, 256, _from(0, 3), (0, 15), (0, 15)),
    "q3_k": NestedGrid(16, 256, _from(-4, 3), _AROUND),
    "q4_k": NestedGrid(32, 256, _from(0, 15), _SIX, _SIX),
    "q5_k": NestedGrid(32, 256, _from(0, 31), _SIX, _SIX),
    "q6_k": NestedGrid(16, 256, _from(-32, 31), (-128, 127)),
    "iq4_nl": NestedGrid(32, 32, IQ4_LEVELS),
    "iq4_xs": NestedGrid(32, 256, IQ4_LEVELS, _AROUND),
}
"""What each type can say."""


def to_nested(type_name: str, rows: _Bytes, columns: int) -> NestedRows:
    """Block bytes u8[rows, row_bytes] of a type of :data:`GRIDS`, in arrays of their own."""
    grid, count = GRIDS[type_name], len(rows)
    found = FIELDS[type_name](rows.reshape(count * (columns // grid.block), -1))
    steps = found.steps.astype(np.float32).reshape(count, -1)
    scales = np.ones_like(steps, np.int16) if found.scales is None else found.scales
    offsets, minimums = found.offsets, found.minimums
    if offsets is not None:
        offsets = offsets.astype(np.float32).reshape(count, -1)
        if minimums is None:  # what is stored is added
            offsets, minimums = -offsets, np.ones_like(offsets, np.int16)
        minimums = minimums.astype(np.int16).reshape(count, -1)
    codes = np.ascontiguousarray(found.codes.reshape(count, columns))
    scales = scales.astype(np.int16).reshape(count, -1)
    return NestedRows(grid, codes, steps, scales, offsets, minimums)


def from_nested(type_name: str, rows: NestedRows) -> _Bytes:
    """The rows as block bytes u8[rows, row_bytes]."""
    grid, count = rows.grid, len(rows.codes)
    blocks = rows.steps.size
    out = np.zeros((blocks, BY_NAME[type_name].type_size), np.uint8)
    codes = rows.codes.reshape(blocks, grid.block)
    scales = rows.scales.reshape(blocks, -1)
    minimums = None if rows.minimums is None else rows.minimums.reshape(blocks, -1)
    _PACKERS[type_name](out, codes, scales, minimums, _halves(rows))
    return out.reshape(count, -1)


def _halves(rows: NestedRows) -> tuple[_Bytes, _Bytes | None]:
    """The bytes u8[blocks, 2] of steps and of offsets."""
    if rows.offsets is None:
        return _f16(rows.steps), None
    added = rows.grid.scales == _ONE
    return _f16(rows.steps), _f16(-rows.offsets if added else rows.offsets)


def _f16(values: NDArray[np.float32]) -> _Bytes:
    little = np.ascontiguousarray(values.astype("<f2").reshape(-1, 1))
    return little.view(np.uint8)


def _nibbles(codes: _Bytes) -> _Bytes:
    """Two codes a byte: those of the first half low, those of the second high."""
    half = codes.shape[-1] // 2
    return codes[..., :half] & 15 | (codes[..., half:] & 15) << np.uint8(4)


def _bits(bits: NDArray[Any]) -> _Bytes:
    """Bits[…, 8, n] as bytes[…, n], the first in the lowest place."""
    places = np.arange(8, dtype=np.uint8)[:, None]
    packed: _Bytes = np.bitwise_or.reduce(bits.astype(np.uint8) << places, axis=-2)
    return packed


def _pairs(pairs: _Bytes) -> _Bytes:
    """Two bits of 256 codes as 64 bytes: 32 of each half of them, four to a byte."""
    places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    parts = pairs.reshape(len(pairs), 2, 4, 32)
    packed: _Bytes = np.bitwise_or.reduce(parts << places, axis=-2)
    return packed.reshape(len(pairs), 64)


def _legacy(*, fifth: bool) -> Callable[..., None]:
    def pack(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
        step, offset = halves
        out[:, :2], at = step, 2
        if offset is not None:
            out[:, 2:4], at = offset, 4
        if fifth:
            bits = codes.reshape(len(codes), 4, 8) >> 4
            out[:, at : at + 4] = _bits(bits.swapaxes(1, 2))
            at += 4
        out[:, at:] = _nibbles(codes)

    return pack


def _k_affine(out: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    s, m = scales.astype(np.uint8), minimums.astype(np.uint8)
    out[:, :2], out[:, 2:4] = halves
    out[:, 4:8] = s[:, :4] | (s[:, 4:] >> 4) << np.uint8(6)
    out[:, 8:12] = m[:, :4] | (m[:, 4:] >> 4) << np.uint8(6)
    out[:, 12:16] = s[:, 4:] & 15 | (m[:, 4:] & 15) << np.uint8(4)


def _by_pairs(codes: _Bytes) -> _Bytes:
    return _nibbles(codes.reshape(len(codes), 4, 64)).reshape(len(codes), 128)


def _q4_k(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    _k_affine(out, scales, minimums, halves)
    out[:, 16:] = _by_pairs(codes)


def _q5_k(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    _k_affine(out, scales, minimums, halves)
    out[:, 16:48] = _bits(codes.reshape(len(codes), 8, 32) >> 4)
    out[:, 48:] = _by_pairs(codes)


def _q2_k(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    out[:, :16] = scales.astype(np.uint8) | minimums.astype(np.uint8) << np.uint8(4)
    out[:, 16:80] = _pairs(codes)
    out[:, 80:82], out[:, 82:84] = halves


def _q3_k(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    out[:, :32] = _bits(codes.reshape(len(codes), 8, 32) >> 2)
    out[:, 32:96] = _pairs(codes & 3)
    s = (scales + 32).astype(np.uint8)
    out[:, 96:104] = _nibbles(s)
    places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (s >> 4).reshape(len(s), 4, 4) << places
    out[:, 104:108] = np.bitwise_or.reduce(high, axis=1)
    out[:, 108:] = halves[0]


def _q6_k(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    parts = codes.reshape(len(codes), 2, 4, 32)
    low = parts[:, :, :2] & 15 | (parts[:, :, 2:] & 15) << np.uint8(4)
    out[:, :128] = low.reshape(len(codes), 128)
    out[:, 128:192] = _pairs(codes >> 4)
    out[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    out[:, 208:] = halves[0]


def _iq4_xs(out: _Bytes, codes: _Bytes, scales: Any, minimums: Any, halves: Any) -> None:
    s = (scales + 32).astype(np.uint8)
    out[:, :2] = halves[0]
    places = np.arange(0, 8, 2, dtype=np.uint8)
    out[:, 2:4] = np.bitwise_or.reduce((s >> 4).reshape(len(s), 2, 4) << places, axis=-1)
    out[:, 4:8] = s[:, ::2] & 15 | (s[:, 1::2] & 15) << np.uint8(4)
    out[:, 8:] = _nibbles(codes.reshape(len(codes), 8, 32)).reshape(len(codes), 128)


_PACKERS: Final[dict[str, Callable[..., None]]] = {
    "q4_0": _legacy(fifth=False),
    "q4_1": _legacy(fifth=False),
    "q5_0": _legacy(fifth=True),
    "q5_1": _legacy(fifth=True),
    "iq4_nl": _legacy(fifth=False),
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_xs": _iq4_xs,
}
