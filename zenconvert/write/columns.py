"""Arrays whose columns are rows of ours, put together in memory before they are written.

A slab of rows is a few bytes in every one of thousands of lines. So slabs go into a band of
columns, and the band goes to the disk when it is whole, in runs of kilobytes to megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.turns import Shared
from zenconvert.model.pieces import Piece, band_rows


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of an array that the rows of one tensor fill, in slabs from any thread."""

    piece: Piece
    first: int
    """Of the rows that the array is of, the one that the tensor's first row is."""
    whole: int
    """Rows that the array is of."""
    rows: int
    """Rows of the tensor."""
    step: int
    """Rows of a slab."""
    bands: dict[int, Shared[NDArray[Any]]] = field(default_factory=dict)

    def put(self, array: NDArray[Any], begin: int, end: int) -> tuple[int, NDArray[Any]] | None:
        """Take ``array[lines, items]`` of the rows ``[begin, end)``.

        When that makes a band whole: its first column, and the band, ``[lines, columns]``.
        """
        size = band_rows(self.piece, self.whole, self.step)
        low = begin // size * size
        high = min(low + size, self.rows)
        first, last = self._span(low, high)
        if (begin, end) == (low, high):
            return first, array
        fresh: Shared[NDArray[Any]] = Shared(-(-(high - low) // self.step))
        band = self.bands.setdefault(low, fresh)
        lines = band.get(lambda: np.empty((len(array), last - first), array.dtype))
        at, to = self._span(begin, end)
        lines[:, at - first : to - first] = array
        if not band.is_last():
            return None
        del self.bands[low]
        return first, lines

    def _span(self, begin: int, end: int) -> tuple[int, int]:
        return self.piece.span(self.first + begin, self.first + end)
