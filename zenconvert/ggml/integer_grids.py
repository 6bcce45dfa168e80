"""Grouped rows as the bytes of block types whose numbers lie on such a grid.

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

GRIDS: Final = {name: block_grids.GRIDS[name] for name in ("q4_0", "q5_0", "q8_0")}
"""Types that are such a grid, bit for bit."""

WITH_MINIMUM: Final[dict[str, Grouped]] = {"q4_1": Grouped(4, _COLUMNS, symmetric=False)}
"""Types that take such a grid after rounding the minimum ``-zero * scale`` to float16, which
changes nothing where the grid is symmetric."""

_WRITABLE: Final = frozenset({"q4_0", "q8_0", "q4_1"})


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
