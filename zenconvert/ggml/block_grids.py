"""Block types whose numbers are small integers times a scale, plus a minimum where they have one.

Scales of scales and tables of integers are multiplied out: a K-quant block becomes groups with
float32 scales (exact: 11 bits times 4 to 8), a table lookup its int8 value. What a type decodes to
is kept bit for bit.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zenconvert.base.arrays import Array, beside, cast, taken
from zenconvert.ggml.block_fields import FIELDS, IQ4_LEVELS, halves
from zenconvert.model.encoding import F16, F32, Grouped
from zenconvert.model.grouped import GroupedRows

_FP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_E8M0_HALVES: Final = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)
"""``2 ** (e - 127)``, halved as the table above is doubled."""

_TYPES: Final[dict[str, tuple[Grouped, int]]] = {
    "q4_0": (Grouped(4, 32, True), 32),
    "q5_0": (Grouped(5, 32, True), 32),
    "q8_0": (Grouped(8, 32, True), 32),
    "q4_1": (Grouped(4, 32, False, offset=F16), 32),
    "q5_1": (Grouped(5, 32, False, offset=F16), 32),
    "q2_k": (Grouped(2, 16, False, F32, offset=F32), 256),
    "q3_k": (Grouped(3, 16, True, F32), 256),
    "q4_k": (Grouped(4, 32, False, F32, offset=F32), 256),
    "q5_k": (Grouped(5, 32, False, F32, offset=F32), 256),
    "q6_k": (Grouped(6, 16, True, F32), 256),
    "iq4_nl": (Grouped(8, 32, True), 32),
    "iq4_xs": (Grouped(8, 32, True, F32), 256),
    "mxfp4": (Grouped(8, 32, True, F32), 32),
}
GRIDS: Final[dict[str, Grouped]] = {name: grid for name, (grid, _) in _TYPES.items()}
"""What the numbers of every type lie on."""
_LEVELS: Final = {"iq4_nl": IQ4_LEVELS, "iq4_xs": IQ4_LEVELS}


def to_grouped(type_name: str, blocks: Array, columns: int) -> GroupedRows:
    """Block bytes u8[rows, row_bytes] of a type of :data:`GRIDS` as grouped rows, bit for bit.

    Of numpy or of torch, as the blocks are.
    """
    grid, size = _TYPES[type_name]
    rows = len(blocks)
    parts = _mxfp4 if type_name == "mxfp4" else _from_fields
    codes, scales, offsets = parts(type_name, blocks.reshape(rows * (columns // size), -1))
    return GroupedRows(
        grid.bits,
        codes.reshape(rows, columns),
        scales.reshape(rows, -1),
        None,
        grid.group,
        offsets=None if offsets is None else offsets.reshape(rows, -1),
    )


def _from_fields(type_name: str, blocks: Array) -> tuple[Array, Array, Array | None]:
    """Codes u8[blocks, elements], scales and any offsets float[blocks, groups]."""
    found = FIELDS[type_name](blocks)
    codes, scales, offsets = found.codes, found.steps[:, None], None
    if type_name in _LEVELS:
        codes = _levels(codes, _LEVELS[type_name])
    if found.scales is not None:
        scales = _scaled(found.steps, found.scales)
    if found.minimums is not None:
        offsets = -_scaled(found.offsets, found.minimums)
    elif found.offsets is not None:
        offsets = found.offsets[:, None]
    return codes, scales, offsets


def _mxfp4(type_name: str, blocks: Array) -> tuple[Array, Array, Array | None]:
    scales = taken(beside(_E8M0_HALVES, blocks), blocks[:, :1])
    return _levels(halves(blocks[:, 1:]), _FP4_LEVELS), scales, None


def _scaled(factor: Array, integers: Array) -> Array:
    """``factor · integer`` of every group, exact in float32."""
    return cast(factor, np.float32)[:, None] * cast(integers, np.float32)


def _levels(nibbles: Array, levels: tuple[int, ...]) -> Array:
    """Values of a table as codes around 128."""
    codes = (np.array(levels, dtype=np.int16) + 128).astype(np.uint8)
    return taken(beside(codes, nibbles), nibbles)
