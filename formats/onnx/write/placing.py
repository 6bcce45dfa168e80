"""Where the arrays of a model lie in its external data files.

Every array begins at a multiple of 4 KiB, so that runtimes can map it into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.model.layout import Choice, OutputFile, Slot

ALIGNMENT: Final = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where one array lies."""

    file: str
    """Beside the graph."""
    offset: int
    nbytes: int


def array_name(choice: Choice, piece: str = "") -> str:
    """The name in the graph of a tensor's array, or of one piece of a grouped tensor."""
    if piece:
        return f"{choice.name.removesuffix('.weight')}.{piece}"
    return f"{choice.name}_t" if choice.transposed else choice.name


@dataclass(frozen=True, slots=True)
class Stack:
    """Grouped tensors of one shape and grid that lie in common arrays ``[members, rows, …]``."""

    name: str
    """Of the arrays in the graph, before the name of the piece."""
    members: tuple[Choice, ...]
    abreast: int = 1
    """Members whose rows alternate, before those of the next ones begin."""

    @property
    def arrays(self) -> list[tuple[str, int]]:
        """Name and bytes of every array."""
        pieces, count = self.members[0].pieces, len(self.members)
        return [(f"{self.name}.{piece.name}", count * piece.nbytes) for piece in pieces]

    def slots(self, offsets: Sequence[int]) -> Iterator[Slot]:
        """Where the members lie in arrays that begin at ``offsets``."""
        for number, choice in enumerate(self.members):
            block, beside = divmod(number, self.abreast)
            first = block * self.abreast * choice.shape[0] + beside
            rows = [piece.nbytes // piece.shape[0] for piece in choice.pieces]
            starts = tuple(at + first * row for at, row in zip(offsets, rows, strict=True))
            strides = tuple(self.abreast * row for row in rows)
            yield Slot(choice, starts[0], starts, strides)


@dataclass(frozen=True, slots=True)
class _Single:
    """A tensor in arrays of its own."""

    choice: Choice

    @property
    def arrays(self) -> list[tuple[str, int]]:
        choice = self.choice
        if choice.pieces:
            return [(array_name(choice, piece.name), piece.nbytes) for piece in choice.pieces]
        return [(array_name(choice), choice.nbytes)]

    def slots(self, offsets: Sequence[int]) -> Iterator[Slot]:
        yield Slot(self.choice, offsets[0], tuple(offsets) if self.choice.pieces else ())


def place(
    choices: Sequence[Choice],
    stacks: Iterable[Stack],
    stem: str,
    folder: str,
    limit: int | None,
) -> tuple[dict[str, Place], list[OutputFile]]:
    """Places of all arrays and the files that hold them.

    The first file is called ``stem``, further ones ``stem_1`` … where ``limit`` bounds their size.
    """
    places: dict[str, Place] = {}
    files: list[OutputFile] = []
    for number, group in enumerate(_split(_units(choices, stacks), limit)):
        name = f"{stem}_{number}" if number else stem
        slots, at = list[Slot](), 0
        for unit in group:
            offsets = []
            for array, nbytes in unit.arrays:
                places[array] = Place(name, at, nbytes)
                offsets.append(at)
                at = _aligned(at + nbytes)
            slots += unit.slots(offsets)
        literals = tuple(
            (slot.offset, slot.choice.derived) for slot in slots if slot.choice.derived is not None
        )
        files.append(OutputFile(folder + name, at, literals, tuple(slots)))
    return places, files


def _units(choices: Sequence[Choice], stacks: Iterable[Stack]) -> Iterator[_Single | Stack]:
    """Everything in the order of the graph; a stack stands where its first member would."""
    stack_of: Mapping[str, Stack] = {c.name: s for s in stacks for c in s.members}
    for choice in choices:
        stack = stack_of.get(choice.name)
        if stack is None:
            yield _Single(choice)
        elif stack.members[0].name == choice.name:
            yield stack


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def _split(units: Iterable[_Single | Stack], limit: int | None) -> list[list[_Single | Stack]]:
    groups: list[list[_Single | Stack]] = [[]]
    filled = 0
    for unit in units:
        size = sum(_aligned(nbytes) for _, nbytes in unit.arrays)
        if limit is not None and groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(unit)
        filled += size
    return groups
