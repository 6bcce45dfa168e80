"""Files that a command writes beside its main output: looked at before the work, written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zenconvert.base.atomic import append_whole, write_whole
from zenconvert.base.places import check_places, check_side_file


def check_outputs(
    inputs: Mapping[str, str | Path | None],
    side_files: Mapping[str, Path | None],
    out: Path | None = None,
) -> None:
    """Refuse places that cannot be written, that are inputs, or that are one another's.

    Keys are what the paths are called on the command line. Raises UsageError.
    """
    for option, path in side_files.items():
        check_side_file(option, path)
    check_places(inputs, {"OUT": out, **side_files})


def write_side_file(path: Path, text: str) -> None:
    """Write a file; where a link stands, what it points to. Raises as ``write_whole``."""
    write_whole(path.resolve(), text)


def append_side_file(path: Path, text: str) -> None:
    """Put text at the end of a file, all of it or nothing. Raises as ``append_whole``."""
    append_whole(path.resolve(), text)
