"""Rows on a grid whose scales are themselves small integers times a float16.

``value = (step · scale) · level[code] - offset · minimum`` in float32, in this order: ggml's
K-quants, IQ4_XS, and its types of 32 columns, whose scale and minimum are always 1. What a code, a
scale or a step may be is the grid's; what they are is free, so that a solver may choose them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class NestedGrid:
    """What numbers of a nested grid may be."""

    group: int
    """Columns that share a scale and a minimum."""
    block: int
    """Columns that share a step and an offset."""
    levels: tuple[int, ...]
    """What codes stand for, rising."""
    scales: tuple[int, int] = (1, 1)
    """The smallest and the largest scale."""
    minimums: tuple[int, int] | None = None
    """The smallest and the largest minimum; None for a grid without any."""


@dataclass(frozen=True, eq=False)
class NestedRows:
    """Some rows of a matrix on a nested grid."""

    grid: NestedGrid
    codes: NDArray[np.uint8]
    """[rows, columns], indexes of levels."""
    steps: NDArray[np.float32]
    """[rows, blocks], float16 numbers."""
    scales: NDArray[np.int16]
    """[rows, groups]."""
    offsets: NDArray[np.float32] | None = None
    """[rows, blocks], float16 numbers; None where the grid has no minimums."""
    minimums: NDArray[np.int16] | None = None
    """[rows, groups]."""

    @property
    def factors(self) -> NDArray[np.float32]:
        """``step · scale`` of every group, float32[rows, groups]; exact."""
        return self._spread(self.steps) * self.scales.astype(np.float32)

    @property
    def lows(self) -> NDArray[np.float32]:
        """``offset · minimum`` of every group, float32[rows, groups]; 0 where there are none."""
        if self.offsets is None or self.minimums is None:
            return np.zeros(self.scales.shape, np.float32)
        return self._spread(self.offsets) * self.minimums.astype(np.float32)

    def dequantize(self) -> NDArray[np.float32]:
        """The numbers, float32[rows, columns], as ggml decodes them."""
        levels = np.array(self.grid.levels, np.float32)[self.codes]
        shape = (*self.scales.shape, self.grid.group)
        values = self.factors[..., None] * levels.reshape(shape)
        if self.offsets is not None:
            values -= self.lows[..., None]
        return values.reshape(self.codes.shape)

    def copy(self) -> NestedRows:
        """The same numbers in arrays that may be written to."""
        return self._each(lambda array: array.copy())

    def __getitem__(self, rows: slice) -> NestedRows:
        """Views of some rows."""
        return self._each(lambda array: array[rows])

    def columns(self, begin: int, end: int) -> NestedRows:
        """The columns of whole blocks, in arrays of their own."""
        return self._each(lambda array: array[:, self._places(array, begin, end)].copy())

    def put_columns(self, begin: int, end: int, other: NestedRows) -> None:
        """Replace the columns of whole blocks by those of another."""
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[:, self._places(mine, begin, end)] = theirs

    def put(self, rows: NDArray[np.bool_], other: NestedRows) -> None:
        """Replace the rows of a mask by those of another."""
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[rows] = theirs[rows]

    @classmethod
    def stack(cls, parts: list[NestedRows]) -> NestedRows:
        """Rows after one another."""
        arrays = zip(*[part._arrays() for part in parts], strict=True)
        return parts[0]._with([np.concatenate(found) for found in arrays])

    def _arrays(self) -> list[NDArray[Any]]:
        found = (self.codes, self.steps, self.scales, self.offsets, self.minimums)
        return [array for array in found if array is not None]

    def _with(self, arrays: list[NDArray[Any]]) -> NestedRows:
        return NestedRows(self.grid, *arrays)

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> NestedRows:
        return self._with([change(array) for array in self._arrays()])

    def _places(self, array: NDArray[Any], begin: int, end: int) -> slice:
        """Where an array holds what is of some columns."""
        width, count = self.codes.shape[1], array.shape[1]
        return slice(begin * count // width, end * count // width)

    def _spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(values, self.grid.block // self.grid.group, axis=1)
