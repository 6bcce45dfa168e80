"""Tensors that are stored in several arrays, and what reads them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from numpy.typing import NDArray

from zenconvert.model.encoding import Dense

ROW_UNIT = 32
"""Packed pieces hold whole words for every multiple of this many rows, whatever the bits."""
BAND_BYTES = 1 << 26
"""Of an array whose columns are rows of ours, what is put together in memory before it is written,
and read at once, so that the system is asked for long runs."""
RUN_BYTES = 1 << 14
"""Shortest run that is worth a call."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One array of a tensor that is stored in several, and which rows each part of it is of."""

    name: str
    dtype: str
    """Of :data:`zenconvert.model.encoding.DENSE_DTYPES`."""
    shape: tuple[int, ...]
    axis: int | None = 0
    """The axis along which logical rows lie; None for an array that all rows share."""
    items: int = ROW_UNIT
    """Array items along that axis for every :data:`ROW_UNIT` logical rows."""
    rows: int | None = None
    """Logical rows that share an item; the last may be shared by fewer. In place of ``items``."""
    codes: bool = False
    """True for the large array, False for scales, zeros and indexes."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * Dense(self.dtype).numpy.itemsize

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """The items along the axis that hold logical rows ``[begin, end)``."""
        if self.axis is None:
            return 0, self.shape[0]
        if self.rows is not None:
            return begin // self.rows, -(-end // self.rows)
        last = -(-end * self.items // ROW_UNIT)
        return begin * self.items // ROW_UNIT, min(last, self.shape[self.axis])

    def extents(self, begin: int, end: int, stride: int = 0) -> Iterator[tuple[int, int]]:
        """``(offset, size)`` in bytes of what logical rows ``[begin, end)`` fill; lines of the
        array are ``stride`` bytes apart, or follow each other."""
        if self.axis is None:
            yield 0, self.nbytes
            return
        line = self.nbytes // self.shape[0]
        first, last = self.span(begin, end)
        if self.axis == 1 and (first, last) != (0, self.shape[1]):
            item = line // self.shape[1]
            for number in range(self.shape[0]):
                yield number * (stride or line) + first * item, (last - first) * item
            return
        if self.axis == 1:
            first, last = 0, self.shape[0]
        for number in range(first, last) if stride else [first]:
            yield number * (stride or line), line if stride else (last - first) * line


class PieceCodec(Hashable, Protocol):
    """Which arrays a tensor of one encoding is stored in, and how they are read."""

    def pieces(self, encoding: Any, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The arrays of a tensor ``[out, in]``, in file order."""

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Any) -> Any:
        """Rows as they travel, of arrays of some rows. Raises InvalidInput or CorruptFile."""


class LineCodec(PieceCodec, Protocol):
    """Stores a tensor in several arrays of which every one has a line for every row."""

    @property
    def mark(self) -> str:
        """What stands between the name of a module and that of an array."""

    def pack(self, rows: Any) -> dict[str, NDArray[Any]]:
        """The lines ``[rows, items]`` of every array."""


def band_rows(piece: Piece, rows: int, step: int) -> int:
    """How many of a tensor's ``rows``, which are columns of this array, to move at a time.

    As many as :data:`BAND_BYTES` hold, or more where a line of them would be shorter than
    :data:`RUN_BYTES`; a multiple of ``step``.
    """
    bytes_at_least = max(BAND_BYTES, RUN_BYTES * piece.shape[0])
    return max(1, bytes_at_least * rows // piece.nbytes // step) * step
