"""Block types whose numbers lie on a grid of integers times a scale: their bytes ↔ grouped rows.

Q4_0, Q5_0 and Q8_0 hold a float16 scale for 32 columns and integers around a midpoint; Q4_1 holds a
float16 scale and a float16 minimum, so that a zero fits only where ``-zero * scale`` is a float16,
as it is for midpoints.

Layouts: ``block_q4_0`` … in ggml-common.h. In the 4-bit types byte j holds columns j and j + 16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.ggml import block_grids
from zenconvert.model.encoding import F16, Grouped
from zenconvert.model.grouped import GroupedRows, regroup

_COLUMNS: Final = 32
_LARGEST: Final = 65504

GRIDS: Final[dict[str, Grouped]] = {
    "q4_0": Grouped(4, _COLUMNS, symmetric=True),
    "q5_0": Grouped(5, _COLUMNS, symmetric=True),
    "q8_0": Grouped(8, _COLUMNS, symmetric=True),
}
"""Types that are such a grid, bit for bit."""

WITH_MINIMUM: Final[dict[str, Grouped]] = {"q4_1": Grouped(4, _COLUMNS, symmetric=False)}
"""Types that take such a grid after rounding the minimum ``-zero * scale`` to float16, which
changes nothing where the grid is symmetric."""

_WRITABLE: Final = frozenset({"q4_0", "q8_0", "q4_1"})


def grid_of(type_name: str) -> Grouped | None:
    """The grid that the numbers of a type lie on, None where they lie on none."""
    return GRIDS.get(type_name) or block_grids.GRIDS.get(type_name)


def takes(type_name: str, grid: Grouped) -> Grouped | None:
    """The grid that :func:`from_grouped` puts into blocks of a type, None where there is none.

    ``grid`` is what there is: with minimums of its own, a type with a minimum takes them.
    """
    if type_name not in _WRITABLE:
        return None
    affine = WITH_MINIMUM.get(type_name)
    if affine is not None and grid.offset is not None:
        return replace(affine, offset=F16)
    return GRIDS.get(type_name) or affine


def to_grouped(type_name: str, blocks: NDArray[np.uint8], columns: int) -> GroupedRows:
    """Block bytes u8[rows, row_bytes] of a type with a grid as grouped rows, bit for bit."""
    if type_name not in GRIDS:
        return block_grids.to_grouped(type_name, blocks, columns)
    rows, grid = len(blocks), GRIDS[type_name]
    parts = blocks.reshape(rows, columns // _COLUMNS, -1)
    scales = np.ascontiguousarray(parts[..., :2]).view("<f2")[..., 0]
    if type_name == "q8_0":
        codes = parts[..., 2:] ^ np.uint8(0x80)
    else:
        low = parts[..., -16:]
        codes = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], axis=-1)
    if type_name == "q5_0":
        high = np.unpackbits(parts[..., 2:6], axis=-1, bitorder="little")
        codes = codes | (high << np.uint8(4))
    return GroupedRows(grid.bits, codes.reshape(rows, columns), scales, None, grid.group)


def from_grouped(type_name: str, rows: GroupedRows) -> NDArray[np.uint8]:
    """Grouped rows as block bytes u8[rows, row_bytes].

    Bit for bit where the type is a grid; Q4_1 rounds its minimum to float16. Raises InvalidInput
    for numbers that are not on the grid and minimums beyond float16.
    """
    if type_name in WITH_MINIMUM:
        grid = takes(type_name, rows.encoding)
        assert grid is not None  # such types are writable
        return _with_minimum(regroup(rows, grid))
    rows = regroup(rows, GRIDS[type_name])
    codes = _by_block(rows)
    body = codes ^ np.uint8(0x80) if type_name == "q8_0" else _nibbles(codes)
    return _joined(_bytes(rows.scales), body)


def _with_minimum(rows: GroupedRows) -> NDArray[np.uint8]:
    minimum = rows.offsets
    if minimum is None:
        assert rows.zeros is not None  # regroup made them explicit
        minimum = -(rows.zeros.astype(np.float32) * rows.scales.astype(np.float32))
        if (largest := float(np.abs(minimum).max(initial=0))) > _LARGEST:
            raise InvalidInput(f"the minimum {-largest:g} is beyond the range of f16 ({_LARGEST})")
    return _joined(
        _bytes(rows.scales), _bytes(minimum.astype(np.float16)), _nibbles(_by_block(rows))
    )


def _by_block(rows: GroupedRows) -> NDArray[np.uint8]:
    return rows.codes.reshape(len(rows.codes), -1, _COLUMNS)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return codes[..., :16] | (codes[..., 16:] << np.uint8(4))


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """float16[rows, blocks] → u8[rows, blocks, 2]."""
    little = np.ascontiguousarray(values.astype("<f2"))
    return little.view(np.uint8).reshape(*values.shape, 2)


def _joined(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    joined = np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(joined.reshape(len(joined), -1))
