"""Where the arrays of a model lie in its external data files.

Every array begins at a multiple of 4 KiB, so that runtimes can map it into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.encoding import Grouped
from zenconvert.layout import Choice, OutputFile, Slot

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


def place(
    choices: Sequence[Choice], stem: str, folder: str, limit: int | None
) -> tuple[dict[str, Place], list[OutputFile]]:
    """Places of all arrays and the files that hold them.

    The first file is called ``stem``, further ones ``stem_1`` … where ``limit`` bounds their size.
    """
    places: dict[str, Place] = {}
    files: list[OutputFile] = []
    for number, group in enumerate(_split(choices, limit)):
        name = f"{stem}_{number}" if number else stem
        slots, at = [], 0
        for choice in group:
            offsets = []
            for array, nbytes in _arrays(choice):
                places[array] = Place(name, at, nbytes)
                offsets.append(at)
                at = _aligned(at + nbytes)
            grouped = isinstance(choice.encoding, Grouped)
            slots.append(Slot(choice, offsets[0], tuple(offsets) if grouped else ()))
        literals = tuple(
            (slot.offset, slot.choice.derived) for slot in slots if slot.choice.derived is not None
        )
        files.append(OutputFile(folder + name, at, literals, tuple(slots)))
    return places, files


def _arrays(choice: Choice) -> list[tuple[str, int]]:
    """Name and bytes of what a choice puts into the file."""
    if choice.pieces:
        return [(array_name(choice, piece.name), piece.nbytes) for piece in choice.pieces]
    return [(array_name(choice), choice.nbytes)]


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def _split(choices: Sequence[Choice], limit: int | None) -> list[list[Choice]]:
    groups: list[list[Choice]] = [[]]
    filled = 0
    for choice in choices:
        size = sum(_aligned(nbytes) for _, nbytes in _arrays(choice))
        if limit is not None and groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(choice)
        filled += size
    return groups
