"""Block types whose codes, scales and steps may be chosen freely: bytes to numbers and back.

``to_nested`` and ``from_nested`` are inverses, bit for bit. Layouts: ``block_*`` in ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Final, NamedTuple

import numpy as np

from zenconvert.base.arrays import Array, beside, cast, joined, reinterpreted
from zenconvert.ggml.block_fields import FIELDS, IQ4_LEVELS
from zenconvert.model.nested import NestedGrid, NestedRows

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


def to_nested(type_name: str, rows: Array, columns: int) -> NestedRows:
    """Block bytes u8[rows, row_bytes] of a type of :data:`GRIDS`, in arrays of their own.

    Of numpy or of torch, as the bytes are.
    """
    grid, count = GRIDS[type_name], len(rows)
    found = FIELDS[type_name](rows.reshape(count * (columns // grid.block), -1))
    codes, steps = found.codes.reshape(count, columns), _floats(found.steps, count)
    ones = beside(np.ones(steps.shape, np.int16), steps)
    scales = ones if found.scales is None else _whole(found.scales, count)
    if found.offsets is None:
        return NestedRows(grid, codes, steps, scales)
    offsets = _floats(found.offsets, count)
    if found.minimums is None:  # what is stored is added
        return NestedRows(grid, codes, steps, scales, -offsets, ones)
    return NestedRows(grid, codes, steps, scales, offsets, _whole(found.minimums, count))


def _floats(values: Array, rows: int) -> Array:
    return cast(values, np.float32).reshape(rows, -1)


def _whole(values: Array, rows: int) -> Array:
    return cast(values, np.int16).reshape(rows, -1)


def from_nested(type_name: str, rows: NestedRows) -> Array:
    """The rows as block bytes u8[rows, row_bytes], where the rows lie."""
    grid, count = rows.grid, len(rows.codes)
    blocks = rows.steps.reshape(-1)
    of_blocks = Parts(
        rows.codes.reshape(len(blocks), grid.block),
        blocks,
        rows.scales.reshape(len(blocks), -1),
        None if rows.offsets is None else rows.offsets.reshape(-1),
        None if rows.minimums is None else rows.minimums.reshape(len(blocks), -1),
    )
    if of_blocks.offsets is not None and grid.scales == _ONE:  # what is stored is added
        of_blocks = of_blocks._replace(offsets=-of_blocks.offsets)
    return packed(type_name, of_blocks).reshape(count, -1)


class Parts(NamedTuple):
    """What the bytes of blocks say, of numpy or of torch."""

    codes: Array
    """u8[blocks, elements]."""
    steps: Array
    """float32[blocks], stored as float16, and so are offsets."""
    scales: Array
    """Whole numbers[blocks, groups], stored modulo 256, and so are minimums."""
    offsets: Array | None = None
    """float32[blocks]: those of types of 32 elements are added."""
    minimums: Array | None = None


def packed(type_name: str, parts: Parts) -> Array:
    """Blocks u8[blocks, type_size] of a type of :data:`GRIDS`."""
    return joined(_PACKERS[type_name](parts))


def _f16(values: Array) -> Array:
    """Bytes u8[blocks, 2]."""
    return reinterpreted(cast(values, np.dtype("<f2")).reshape(-1, 1), np.uint8)


def _octets(values: Array) -> Array:
    """Whole numbers modulo 256."""
    return cast(cast(values, np.int16) & 255, np.uint8)


def _nibbles(codes: Array) -> Array:
    """Two codes a byte: those of the first half low, those of the second high."""
    half = codes.shape[-1] // 2
    return codes[..., :half] & 15 | (codes[..., half:] & 15) << 4


def _side_by_side(bits: Array, width: int) -> Array:
    """Bits[…, 8 / width, n] as bytes[…, n], the first in the lowest place."""
    parts = (bits[..., at, :] << at * width for at in range(8 // width))
    return reduce(or_, parts)


def _pairs(pairs: Array) -> Array:
    """Two bits of 256 codes as 64 bytes: 32 of each half of them, four to a byte."""
    return _side_by_side(pairs.reshape(len(pairs), 2, 4, 32), 2).reshape(len(pairs), 64)


def _flat(parts: Parts) -> list[Array]:
    steps = [_f16(parts.steps)]
    offsets = [] if parts.offsets is None else [_f16(parts.offsets)]
    return [*steps, *offsets, _nibbles(parts.codes)]


def _flat_with_fifth_bits(parts: Parts) -> list[Array]:
    *halves, nibbles = _flat(parts)
    bits = parts.codes.reshape(len(parts.codes), 4, 8) >> 4
    return [*halves, _side_by_side(bits[..., None], 1)[..., 0], nibbles]


def _k_affine(parts: Parts) -> list[Array]:
    s, m = _octets(parts.scales), _octets(parts.minimums)
    return [
        _f16(parts.steps),
        _f16(parts.offsets),
        s[:, :4] | (s[:, 4:] >> 4) << 6,
        m[:, :4] | (m[:, 4:] >> 4) << 6,
        s[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
    ]


def _by_pairs(codes: Array) -> Array:
    return _nibbles(codes.reshape(len(codes), 4, 64)).reshape(len(codes), 128)


def _q4_k(parts: Parts) -> list[Array]:
    return [*_k_affine(parts), _by_pairs(parts.codes)]


def _q5_k(parts: Parts) -> list[Array]:
    fifth = _side_by_side(parts.codes.reshape(len(parts.codes), 8, 32) >> 4, 1)
    return [*_k_affine(parts), fifth, _by_pairs(parts.codes)]


def _q2_k(parts: Parts) -> list[Array]:
    both = _octets(parts.scales) | _octets(parts.minimums) << 4
    return [both, _pairs(parts.codes), _f16(parts.steps), _f16(parts.offsets)]


def _q3_k(parts: Parts) -> list[Array]:
    codes, s = parts.codes, _octets(parts.scales + 32)
    third = _side_by_side(codes.reshape(len(codes), 8, 32) >> 2, 1)
    high = _side_by_side((s >> 4).reshape(len(s), 4, 4), 2)
    return [third, _pairs(codes & 3), _nibbles(s), high, _f16(parts.steps)]


def _q6_k(parts: Parts) -> list[Array]:
    codes = parts.codes.reshape(len(parts.codes), 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    pairs, scales = _pairs(parts.codes >> 4), _octets(parts.scales)
    return [low.reshape(len(codes), 128), pairs, scales, _f16(parts.steps)]


def _iq4_xs(parts: Parts) -> list[Array]:
    codes, s = parts.codes.reshape(len(parts.codes), 8, 32), _octets(parts.scales + 32)
    high = _side_by_side((s >> 4).reshape(len(s), 2, 4, 1), 2)[..., 0]
    low = s[:, ::2] & 15 | (s[:, 1::2] & 15) << 4
    return [_f16(parts.steps), high, low, _nibbles(codes).reshape(len(codes), 128)]


_PACKERS: Final[dict[str, Callable[[Parts], list[Array]]]] = {
    "q4_0": _flat,
    "q4_1": _flat,
    "q5_0": _flat_with_fifth_bits,
    "q5_1": _flat_with_fifth_bits,
    "iq4_nl": _flat,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_xs": _iq4_xs,
}
