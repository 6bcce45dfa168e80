"""Rows on a grid whose scales are themselves small integers times a float16.

``value = (step · scale) · level[code] - offset · minimum`` in float32, in this order: ggml's
K-quants, IQ4_XS, and its types of 32 columns, whose scale and minimum are always 1. What a code, a
scale or a step may be is the grid's; what they are is free, so that a solver may choose them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.arrays import Array


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
    """Some rows of a matrix on a nested grid, in arrays of numpy or of torch."""

    grid: NestedGrid
    codes: Array
    """u8[rows, columns], indexes of levels."""
    steps: Array
    """float32[rows, blocks], float16 numbers."""
    scales: Array
    """int16[rows, groups]."""
    offsets: Array | None = None
    """float32[rows, blocks], float16 numbers; None where the grid has no minimums."""
    minimums: Array | None = None
    """int16[rows, groups]."""

    @property
    def factors(self) -> NDArray[np.float32]:
        """``step · scale`` of every group, float32[rows, groups]; exact."""
        found: NDArray[np.float32] = self._spread(self.steps) * self.scales.astype(np.float32)
        return found

    @property
    def lows(self) -> NDArray[np.float32]:
        """``offset · minimum`` of every group, float32[rows, groups]; 0 where there are none."""
        if self.offsets is None or self.minimums is None:
            return np.zeros(self.scales.shape, np.float32)
        found: NDArray[np.float32] = self._spread(self.offsets) * self.minimums.astype(np.float32)
        return found

    def dequantize(self) -> NDArray[np.float32]:
        """The numbers, float32[rows, columns], as ggml decodes them."""
        levels = np.array(self.grid.levels, np.float32)[self.codes]
        shape = (*self.scales.shape, self.grid.group)
        values = self.factors[..., None] * levels.reshape(shape)
        if self.offsets is not None:
            values -= self.lows[..., None]
        return values.reshape(self.codes.shape)

    def _spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(values, self.grid.block // self.grid.group, axis=1)
