"""Places in outputs that want rows of a source, and putting rows there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.model.checkpoint import Tensor
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.layout import Choice, OutputFile, Recoding, Slot
from zenconvert.model.pieces import ROW_UNIT, Piece
from zenconvert.model.row_order import RowOrder
from zenconvert.model.rows import Rows
from zenconvert.model.scaled import ScaledRows
from zenconvert.planning.plan import PACKED_ROWS, Importance
from zenconvert.write.columns import Columns
from zenconvert.write.output import Output
from zenconvert.write.planned_output import Making


@dataclass(frozen=True, slots=True)
class Use:
    """A place in an output that wants the rows of one source tensor."""

    number: int
    """Of the output."""
    file: OutputFile
    slot: Slot
    part: Tensor
    recoding: Recoding
    """From the stored numbers to those of the output."""
    order: RowOrder | None
    """From the stored rows to those of the output."""
    first: int
    """The row of the whole that its first row is."""
    importance: NDArray[np.float32] | None
    turn: int = 0
    """Which of ``choice.turns`` parts it is whose columns stand in turn."""
    columns: dict[str, Columns] = field(default_factory=dict, compare=False)
    """What of its arrays is on the way, by their names."""

    @property
    def offset(self) -> int:
        """Where the first row belongs, if rows are stored one after the other."""
        if self.choice.pieces:
            return self.slot.offset
        return self.slot.offset + self.first * self.choice.encoding.row_bytes(self.part.columns)

    @property
    def key(self) -> str:
        """What the rows are called in the journal of the output."""
        inside = f"+{self.first}" if self.choice.pieces and self.first else ""
        return f"{self.file.name}:{self.offset}{inside}"

    @property
    def choice(self) -> Choice:
        """How the rows are stored."""
        return self.slot.choice

    @property
    def result(self) -> tuple[object, ...]:
        """The same for uses that want the same numbers, whatever arrays they are packed into."""
        choice = self.choice
        weights = id(self.importance)  # the outputs of a pass share their arrays
        encodings = (self.part.encoding, choice.encoding)
        return (self.order, choice.change, *encodings, choice.scheme, choice.columns, weights)

    def spans(self) -> Iterator[tuple[int, int]]:
        """``(offset, size)`` of all that it fills in the file."""
        choice = self.choice
        if not choice.pieces:
            size = self.part.rows * choice.encoding.row_bytes(self.part.columns)
            yield self.offset - self.turn * size, choice.turns * size
        if choice.lines is not None:
            for piece, offset, line in self._lines():
                count = -(-self.part.rows // (piece.rows or 1))
                yield offset - self.turn * line, choice.turns * count * line
            return
        strides = self.slot.strides or (0,) * len(choice.pieces)
        for piece, offset, stride in zip(choice.pieces, self.slot.offsets, strides, strict=True):
            if piece.axis is None and self.first:
                continue  # the first part writes it
            for begin, size in piece.extents(self.first, self.first + self.part.rows, stride):
                yield offset + begin, size

    @property
    def fewest_rows(self) -> int:
        """Rows below which a slab is not worth its calls."""
        # columns lie apart in a file: narrow slabs would cost a system call a few bytes
        stride = getattr(self.part.stored, "stride", None)
        return PACKED_ROWS if self.is_grouped or self.choice.transposed or stride else 1

    @property
    def band(self) -> int:
        """Slabs are cut at multiples of it: whole bands, and whole words of packed rows."""
        unit = ROW_UNIT if self.is_grouped else self.choice.encoding.band
        return lcm(self.order.band if self.order is not None else 1, unit)

    @property
    def is_grouped(self) -> bool:
        """Whether packed integers are read or written."""
        both = (self.part.encoding, self.choice.encoding)
        return any(encoding.grouped is not None for encoding in both)

    def write(self, output: Output, rows: Rows, begin: int, end: int, step: int) -> None:
        """Write rows ``[begin, end)`` of the part, which comes in slabs of ``step`` rows.

        What lies in columns is written when a whole band of them has come. Raises as
        :meth:`Output.write`.
        """
        slab = (begin, end, step)
        if self.choice.lines is not None:
            self._write_lines(output, self.choice.lines.pack(rows), begin)
            return
        assert not isinstance(rows, ScaledRows)  # they are written in lines alone
        if isinstance(rows, GroupedRows):
            self._write_pieces(output, rows, slab)
        elif self.choice.transposed:
            assert self.choice.encoding.dense is not None  # nothing else lies in columns
            shape = (self.part.columns, self.part.rows)
            piece = Piece("", self.choice.encoding.dense.dtype, shape, axis=1)
            lines = Columns(piece, 0, self.part.rows, self.part.rows, step)
            offset = next(self.spans())[0]
            self._write_columns(output, lines, offset, None, rows.T, slab)
        else:
            row_bytes = self.choice.encoding.row_bytes(self.part.columns)
            data = rows.reshape(-1).view(np.uint8).data
            output.write(self.file, self.offset + begin * row_bytes, data)

    def _lines(self) -> Iterator[tuple[Piece, int, int]]:
        """Every array of lines, where the first of the part begins, and the bytes of a line."""
        choice = self.choice
        before = self.first - self.turn * self.part.rows + self.turn
        for piece, offset in zip(choice.pieces, self.slot.offsets, strict=True):
            shared = piece.rows or 1  # a line of several rows begins with the first of them
            line = piece.nbytes // -(-prod(choice.shape[:-1]) // shared)
            yield piece, offset + before // shared * line, line

    def _write_lines(self, output: Output, arrays: Mapping[str, NDArray[Any]], begin: int) -> None:
        """Write the lines of some rows, which others may stand between."""
        for piece, offset, line in self._lines():
            turns, data = self.choice.turns, np.ascontiguousarray(arrays[piece.name])
            at = offset + begin // (piece.rows or 1) * turns * line
            for number, run in enumerate([data.reshape(-1)] if turns == 1 else data):
                output.write(self.file, at + number * turns * line, run.data)

    def _write_pieces(self, output: Output, rows: GroupedRows, slab: tuple[int, int, int]) -> None:
        """Write the packed arrays of some rows of a grouped tensor."""
        choice, (begin, end, step) = self.choice, slab
        assert choice.codec is not None  # every grouped choice has one
        arrays = choice.codec.pack(rows)
        strides = self.slot.strides or (None,) * len(choice.pieces)
        whole = choice.starts[-1] + choice.parts[-1].rows
        for piece, offset, stride in zip(choice.pieces, self.slot.offsets, strides, strict=True):
            if piece.axis is None and (begin or self.first):
                continue  # the same for all rows
            array = arrays[piece.name]
            if piece.axis == 1:
                lines = Columns(piece, self.first, whole, self.part.rows, step)
                self._write_columns(output, lines, offset, stride, array, slab)
                continue
            first, _ = piece.span(self.first + begin, self.first + end)
            row = piece.nbytes // piece.shape[0]
            line = stride or row
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            # rows that lie apart are written one by one
            for number, run in enumerate([data] if line == row else data.reshape(-1, row)):
                output.write(self.file, offset + (first + number) * line, run.data)

    def _write_columns(
        self,
        output: Output,
        fresh: Columns,
        offset: int,
        stride: int | None,
        array: NDArray[Any],
        slab: tuple[int, int, int],
    ) -> None:
        """Write ``array[lines, items]`` of a slab as columns, once their band is whole."""
        piece, (begin, end, _) = fresh.piece, slab
        ready = self.columns.setdefault(piece.name, fresh).put(array, begin, end)
        if ready is None:
            return
        column, lines = ready
        if (turns := self.choice.turns) > 1:
            line, at = turns * piece.nbytes // piece.shape[0], turns * column * lines.itemsize
            output.write_in_turn(self.file, offset + at, line, lines, (self.turn, turns))
            return
        line, at = stride or piece.nbytes // piece.shape[0], offset + column * lines.itemsize
        data = np.ascontiguousarray(lines).view(np.uint8)
        if data.shape[1] == line:
            output.write(self.file, at, data.reshape(-1).data)
            return
        for number, run in enumerate(data):
            output.write(self.file, at + number * line, run.data)


def uses_of(number: int, making: Making) -> Iterator[Use]:
    """What one output, by its number in the pass, wants of the source's tensors."""
    for file in making.plan.layout.files:
        for slot in file.slots:
            choice = slot.choice
            parts = zip(choice.parts, choice.done, choice.starts, strict=True)
            for at, (part, found, first) in enumerate(parts):
                order = _combined(part.order, choice.order)
                weights = _weights(part, choice, making.importance)
                turn = at % choice.turns
                yield Use(number, file, slot, part, found, order, first, weights, turn)


def _weights(part: Tensor, choice: Choice, given: Importance) -> NDArray[np.float32] | None:
    """Importance weights of a tensor, where they change what becomes of it."""
    return given.get(part.name) if choice.encoding.uses_importance else None


def _combined(stored: RowOrder | None, target: RowOrder | None) -> RowOrder | None:
    """One order that does both: stored → logical → target."""
    if stored is None or target is None:
        return stored or target
    index = tuple(stored.index[i] for i in target.index)
    return None if index == tuple(range(len(index))) else RowOrder(index)
