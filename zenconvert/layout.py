"""Where every byte of an output goes, known before the first one is written.

A format's writer turns a checkpoint and a target into a :class:`Layout`; ``conversion`` fills it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from zenconvert.checkpoint import RowOrder, Tensor
from zenconvert.encoding import Encoding


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor of the output: what it is made of and how it will be stored."""

    name: str
    """Name in the output."""
    parts: tuple[Tensor, ...]
    """Source tensors, stacked along a new first dimension when there is more than one."""
    shape: tuple[int, ...]
    """Stored shape, slowest dimension first."""
    encoding: Encoding
    order: RowOrder | None = None
    """How logical rows are reordered for storage."""
    why: str = ""
    """What decided the encoding."""
    needs_importance: bool = False
    """Quantizing to this encoding is refused without importance weights."""
    derived: bytes | None = None
    """The whole data of a tensor that is computed from the config and has no parts."""

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        if self.derived is not None:
            return len(self.derived)
        columns = self.parts[0].columns
        return prod(self.shape) // columns * self.encoding.row_bytes(columns)


@dataclass(frozen=True, slots=True)
class Slot:
    """A choice with its place in a file."""

    choice: Choice
    offset: int


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file: literal bytes, tensor slots, or a copy of another file."""

    name: str
    """Relative to the output folder; the output's own name for a single file."""
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
