"""Where every byte of an output goes, known before the first one is written.

A format's writer turns a checkpoint and a target into a :class:`Layout`; ``conversion`` fills it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

from zenconvert.base.records import record
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.encoding import Encoding, Grouped
from zenconvert.model.grouped import GroupedCodec
from zenconvert.model.pieces import LineCodec, Piece
from zenconvert.model.row_order import RowOrder
from zenconvert.model.target import Scheme

Grid = Scheme | Encoding
"""What a solver quantizes to: integers with a scale per group, or an encoding with its own grid."""

Action = Literal["copy", "repack", "decode", "quantize"]


@dataclass(frozen=True, slots=True)
class Recoding:
    """What happens to a tensor on its way into another encoding."""

    action: Action
    exact: bool
    why: str = ""


@lru_cache(maxsize=256)  # a model has few shapes, and is asked for each many times
def _pieces(codec: GroupedCodec, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    return codec.pieces(encoding, shape)


@lru_cache(maxsize=256)
def _pieces_bytes(codec: GroupedCodec, encoding: Grouped, shape: tuple[int, ...]) -> int:
    return sum(piece.nbytes for piece in _pieces(codec, encoding, shape))


@record
class Choice:
    """A tensor of the output: what it is made of and how it will be stored."""

    name: str
    """Name in the output."""
    parts: tuple[Tensor, ...]
    """Source tensors; where there are several, stacked along a new first dimension, or the rows of
    one after those of the other."""
    shape: tuple[int, ...]
    """Stored shape, slowest dimension first."""
    encoding: Encoding
    order: RowOrder | None = None
    """How logical rows are reordered for storage."""
    change: str | None = None
    """Which of ``operations.CHANGES`` logical numbers go through before they are stored."""
    why: str = ""
    """What decided the encoding."""
    needs_importance: bool = False
    """Quantizing to this encoding is refused without importance weights."""
    derived: bytes | None = None
    """The whole data of a tensor that is computed from the config and has no parts."""
    codec: GroupedCodec | None = None
    """How a grouped tensor is stored."""
    scheme: Scheme | None = None
    """What a grouped tensor is quantized to where its numbers are not on the grid already."""
    is_linear: bool = False
    """Consumers of the format take it for quantized unless the config says otherwise."""
    columns: tuple[int, ...] | None = None
    """The logical column at every stored column, where the format stores them in another order."""
    sheds_zeros: bool = False
    """Zeros need not be stored where every one turns out to be the midpoint."""
    transposed: bool = False
    """A dense matrix whose logical rows are columns of the file; ``shape`` is that of the file."""
    turns: int = 1
    """As many parts, one after the other, have their rows in turn, be they columns of the file or
    lines."""
    lines: LineCodec | None = None
    """How rows that are neither numbers nor grouped are stored in several arrays."""
    told: tuple[Recoding, ...] = ()
    """What becomes of every part, counted from the source; the planner fills it in."""
    done: tuple[Recoding, ...] = ()
    """What is done to the numbers of every part as they lie there, solved ones included, after a
    change of their values; the planner fills it in."""

    def judged(self, told: tuple[Recoding, ...], done: tuple[Recoding, ...]) -> Choice:
        """The choice with what becomes of every part."""
        given = (*_chosen(self), told, done)
        return Choice(*given)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The arrays of a tensor that is stored in several; none for any other."""
        if self.lines is not None:
            return self.lines.pieces(self.encoding, self.shape)
        grid = self.encoding.grouped
        if self.codec is None or grid is None:
            return ()
        return _pieces(self.codec, grid, self.shape)

    @property
    def starts(self) -> tuple[int, ...]:
        """The row of the whole at which every part begins."""
        return tuple(accumulate((p.rows for p in self.parts), initial=0))[: len(self.parts)]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        if self.derived is not None:
            return len(self.derived)
        if self.lines is not None:
            return sum(piece.nbytes for piece in self.pieces)
        if self.codec is not None and (grid := self.encoding.grouped) is not None:
            return _pieces_bytes(self.codec, grid, self.shape)
        columns = self.parts[0].columns
        return prod(self.shape) // columns * self.encoding.row_bytes(columns)


_chosen: Final = attrgetter(*[field.name for field in fields(Choice)[:-2]])
"""What a choice is made with; a model has too many of them for dataclasses.replace."""


@record
class Slot:
    """A choice with its place in a file."""

    choice: Choice
    offset: int
    """Of the first byte; of the first piece of a grouped tensor."""
    offsets: tuple[int, ...] = ()
    """Of every piece of a grouped tensor."""
    strides: tuple[int, ...] = ()
    """Bytes from row to row of every piece, where rows of other tensors lie in between."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file: literal bytes, tensor slots, or a copy of another file."""

    name: str
    """Relative to the output folder, with / between folders; the output's own for a single file."""
    size: int
    literals: tuple[tuple[int, bytes], ...] = ()
    """``(offset, bytes)``; whatever nothing covers is zero."""
    slots: tuple[Slot, ...] = ()
    copy_of: Path | None = None

    @classmethod
    def of_bytes(cls, name: str, data: bytes) -> OutputFile:
        """A small file given whole."""
        return cls(name, len(data), ((0, data),))

    @classmethod
    def of_copy(cls, name: str, path: Path) -> OutputFile:
        """A file copied byte for byte."""
        return cls(name, path.stat().st_size, copy_of=path)


@dataclass(frozen=True, slots=True)
class Layout:
    """All files of an output."""

    files: tuple[OutputFile, ...]
    is_folder: bool

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)
