"""Rows of a tensor in another order than the logical one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zenconvert.model.rows import Rows


@dataclass(frozen=True, slots=True)
class RowOrder:
    """A permutation of rows inside consecutive bands of equal height.

    ``index[k]`` is the row of the stored band that stands at row ``k`` of the logical band.
    """

    index: tuple[int, ...]

    @property
    def band(self) -> int:
        """Rows per band; slabs are cut at multiples of it."""
        return len(self.index)

    def apply(self, rows: Rows) -> Rows:
        """Reorder ``rows[n, …]``, n a multiple of the band."""
        if not isinstance(rows, np.ndarray):
            starts = np.arange(0, len(rows.codes), self.band)[:, None]
            return rows.take((starts + np.asarray(self.index)).reshape(-1))
        banded = rows.reshape(-1, self.band, *rows.shape[1:])
        return np.ascontiguousarray(banded[:, list(self.index)]).reshape(rows.shape)

    def inverse(self) -> RowOrder:
        """The permutation that undoes this one."""
        return RowOrder(tuple(int(i) for i in np.argsort(self.index)))
