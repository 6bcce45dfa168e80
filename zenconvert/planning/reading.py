"""Stored rows of tensors, whatever lies on the disk: rows, columns, or several arrays.

A format may store what is a row here as a column. A slab of rows is then a few bytes in every one
of thousands of lines, so who wants all rows, slab after slab, reads them with :class:`Slabs`: whole
bands of columns come in long runs, and are kept until their last slab is taken.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.turns import Shared
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, ZenError
from zenconvert.model.checkpoint import (
    StoredHalf,
    StoredHalves,
    StoredPieces,
    StoredTensor,
    Tensor,
)
from zenconvert.model.encoding import Dense
from zenconvert.model.pieces import ROW_UNIT, Piece, band_rows
from zenconvert.model.rows import Rows


def read_rows(tensor: Tensor, begin: int, end: int) -> Rows:
    """Stored rows ``[begin, end)`` of a tensor.

    ``dtype[n, columns]``, ``uint8[n, row_bytes]`` for blocks, or grouped rows. Raises
    SourceNotFound when the file cannot be read and CorruptFile when it ends too early.
    """
    stored, size = tensor.stored, tensor.row_bytes
    if isinstance(stored, StoredHalf):
        return _half(stored, begin, end)
    if isinstance(stored, StoredHalves):
        return _both_halves(tensor, stored, begin, end)
    if isinstance(stored, StoredPieces) or stored.stride is not None:
        return _Band(tensor, *_units(tensor, begin, end)).rows(begin, end)
    data = _read(stored.path, stored.offset + begin * size, end - begin, size)
    rows: Rows = tensor.encoding.rows_of(data, tensor.columns)
    return rows


def _half(stored: StoredHalf, begin: int, end: int) -> Rows:
    """Rows of one half of a matrix: keys are turned head by head."""
    whole, heads = stored.whole, stored.heads
    height = whole.columns if stored.keys else heads.values
    first, last = begin // height, -(-end // height)
    rows = read_rows(whole, first * heads.band, last * heads.band)
    if stored.keys:
        numbers = whole.encoding.decode(rows, whole.columns)
        every = np.asarray(numbers).reshape(last - first, heads.band, whole.columns)
        turned = every[:, : heads.keys].transpose(0, 2, 1).reshape(-1, heads.keys)
        return np.ascontiguousarray(turned[begin - first * height : end - first * height])
    numbers = np.arange(begin, end)
    index = numbers // height * heads.band + heads.keys + numbers % height - first * heads.band
    found: Rows = rows[index] if isinstance(rows, np.ndarray) else rows.take(index)
    return found


def _both_halves(tensor: Tensor, stored: StoredHalves, begin: int, end: int) -> Rows:
    """Rows of a matrix whose halves are apart, as numbers."""
    heads, columns = stored.heads, tensor.columns
    first, last = begin // heads.band, -(-end // heads.band)
    parts = []
    for half, height in ((stored.keys, columns), (stored.values, heads.values)):
        rows = read_rows(half, first * height, last * height)
        numbers = np.asarray(half.encoding.decode(rows, half.columns))
        if tensor.encoding.dense is None or numbers.dtype != tensor.encoding.dense.numpy:
            numbers = numbers.astype(np.float32)
        parts.append(numbers.reshape(last - first, height, half.columns))
    keys, values = parts
    whole = np.concatenate([keys.transpose(0, 2, 1), values], axis=1).reshape(-1, columns)
    return np.ascontiguousarray(whole[begin - first * heads.band : end - first * heads.band])


def read_groups(tensor: Tensor, stored: StoredPieces) -> dict[str, NDArray[Any]]:
    """All arrays but the codes, as they are stored. Raises as :func:`read_rows`."""
    pieces = stored.codec.pieces(stored.encoding, tensor.shape)
    small = (piece for piece in pieces if not piece.codes)
    return {p.name: _read_piece(stored.pieces[p.name], p, 0, tensor.rows) for p in small}


class Slabs:
    """All rows of a tensor, read once each, in slabs of ``step`` rows from any thread."""

    def __init__(self, tensor: Tensor, step: int) -> None:
        self.tensor, self.step = tensor, step
        pieces = [piece for piece, _ in _arrays(tensor) if piece.axis == 1]
        largest = max(pieces, key=lambda piece: piece.nbytes, default=None)
        self.band = None if largest is None else band_rows(largest, tensor.rows, step)
        """Rows that are read together; None where a slab lies in one run anyway."""
        self.bands: dict[int, Shared[_Band]] = {}

    def __call__(self, begin: int, end: int) -> Rows:
        """One slab. Raises as :func:`read_rows`."""
        if self.band is None:
            return read_rows(self.tensor, begin, end)
        first = begin // self.band * self.band
        last = min(first + self.band, self.tensor.rows)
        fresh: Shared[_Band] = Shared(-(-(last - first) // self.step))
        shared = self.bands.setdefault(first, fresh)
        band = shared.get(lambda: _Band(self.tensor, *_units(self.tensor, first, last)))
        rows = band.rows(begin, end)
        if shared.is_last():
            del self.bands[first]
        return rows


class _Band:
    """The arrays of some rows of a tensor that does not lie row after row."""

    def __init__(self, tensor: Tensor, first: int, last: int) -> None:
        self.tensor, self.first = tensor, first
        self.arrays = [(p, _read_piece(place, p, first, last)) for p, place in _arrays(tensor)]

    def rows(self, begin: int, end: int) -> Rows:
        """Rows ``[begin, end)`` of them."""
        stored = self.tensor.stored
        if not isinstance(stored, StoredPieces):
            assert isinstance(stored, StoredTensor)  # halves are read by themselves
            ((_, lines),), (at, of) = self.arrays, stored.turn
            columns = slice((begin - self.first) * of + at, (end - self.first) * of, of)
            return np.ascontiguousarray(lines[:, columns].T)
        first, last = _units(self.tensor, begin, end)
        arrays = {piece.name: self._cut(piece, array, first, last) for piece, array in self.arrays}
        try:
            whole = stored.codec.unpack(arrays, stored.encoding)
        except ZenError as error:
            raise InvalidInput(f"{stored.path}: {stored.name}: {error}") from error
        cut = (first, last) != (begin, end)
        wanted = slice(begin - first, end - first)
        if cut:
            whole = whole[wanted] if isinstance(whole, np.ndarray) else whole.take(wanted)
        rows: Rows = whole
        return rows

    def _cut(self, piece: Piece, array: NDArray[Any], first: int, last: int) -> NDArray[Any]:
        if piece.axis is None:
            return array
        (begin, end), (before, _) = piece.span(first, last), piece.span(self.first, last)
        items = slice(begin - before, end - before)
        found = np.ascontiguousarray(array[:, items] if piece.axis == 1 else array[items])
        if piece.rows is None:
            return found
        # an item for every row, to go with its codes
        return found[np.arange(first, last) // piece.rows - begin]


def _arrays(tensor: Tensor) -> list[tuple[Piece, StoredTensor]]:
    """What a tensor lies in; nothing where it lies row after row."""
    stored = tensor.stored
    if isinstance(stored, StoredPieces):
        pieces = stored.codec.pieces(stored.encoding, tensor.shape)
        return [(piece, stored.pieces[piece.name]) for piece in pieces]
    if not isinstance(stored, StoredTensor) or stored.stride is None:
        return []
    numbers = tensor.encoding.dense
    assert numbers is not None  # nothing else lies in columns
    _, of = stored.turn
    shape = (tensor.columns, tensor.rows * of)
    return [(Piece("", numbers.dtype, shape, axis=1, items=ROW_UNIT * of), stored)]


def _units(tensor: Tensor, begin: int, end: int) -> tuple[int, int]:
    """The rows in whole words of what is packed."""
    if not isinstance(tensor.stored, StoredPieces):
        return begin, end
    return begin // ROW_UNIT * ROW_UNIT, min(-(-end // ROW_UNIT) * ROW_UNIT, tensor.rows)


def _read_piece(place: StoredTensor, piece: Piece, begin: int, end: int) -> NDArray[Any]:
    dtype = Dense(piece.dtype).numpy
    first, last = piece.span(begin, end)
    row = piece.shape[-1] * dtype.itemsize if len(piece.shape) > 1 else dtype.itemsize
    if piece.axis != 1:
        line = place.stride or row
        data = _read(place.path, place.offset + first * line, last - first, row, stride=line)
        return data.reshape(-1).view(dtype).reshape(last - first, *piece.shape[1:])
    width = (last - first) * dtype.itemsize
    offset = place.offset + first * dtype.itemsize
    data = _read(place.path, offset, piece.shape[0], width, stride=place.stride or row)
    return data.reshape(-1).view(dtype).reshape(piece.shape[0], last - first)


def _read(
    path: Path, offset: int, count: int, width: int, stride: int | None = None
) -> NDArray[np.uint8]:
    """``count`` runs of ``width`` bytes, ``stride`` apart: uint8[count, width]."""
    data = np.empty((count, width), dtype=np.uint8)
    runs = [data.reshape(-1)] if stride in {None, width} else list(data)
    try:
        with path.open("rb", buffering=0) as file:
            for index, run in enumerate(runs):
                view, at = run.data, offset + index * (stride or 0)
                while view:
                    done = os.preadv(file.fileno(), [view], at)
                    if done == 0:
                        raise CorruptFile(f"{path}: ends before byte {at + len(view)}")
                    view, at = view[done:], at + done
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    return data
