"""Which files a run reads and which it writes: no input is ever an output.

Files are compared by what they are, not by how they are called: through links, ``X/.``, hard links,
and names that differ only in what the file system takes for the same. ``--force`` is for old
outputs; it makes no difference here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from zenconvert.base.atomic import LONGEST_NAME, try_place
from zenconvert.errors import UsageError

_Identity = tuple[int, int]
_MOST_FILES: Final = 100_000
"""Files of a source folder that are looked at for hard links."""


def check_places(
    inputs: Mapping[str, str | Path | None], outputs: Mapping[str, str | Path | None]
) -> None:
    """Refuse outputs that are inputs, lie in them or hold them, and outputs within each other.

    Keys say what a path is ("the source", "--json"); None is nothing. Names that are not on the
    disk (Hub ids, ``builtin:``) are no inputs of this kind.

    Raises UsageError, naming both.
    """
    read = {what: Path(path) for what, path in inputs.items() if path is not None}
    written = {what: Path(path) for what, path in outputs.items() if path is not None}
    for what, out in written.items():
        for other, source in read.items():
            if os.path.lexists(source) and (how := _overlap(source, out)):
                raise UsageError(
                    f"{out}: {what} {how} {other} ({source}), which would be lost; choose another "
                    "place"
                )
    names = list(written)
    for number, what in enumerate(names):
        for other in names[number + 1 :]:
            if how := _nested(written[other], written[what]):
                raise UsageError(
                    f"{written[what]}: {what} {how} {other} ({written[other]}); choose another "
                    "place for one of them"
                )


def check_files(what: str, out: Path, finals: Iterable[Path], read: Iterable[Path]) -> None:
    """Refuse names of an output that are files of its source. Raises UsageError."""
    known = {found: path for path in read if (found := _identity(path)) is not None}
    for final in finals:
        if (same := known.get(_identity(final) or (-1, -1))) is not None:
            raise UsageError(
                f"{out}: {what} would replace {same}, a file of the source; choose another place"
            )


def check_side_file(option: str, path: Path | None, *, appended: bool = False) -> None:
    """Refuse a place where a small file cannot be written, before any work is done.

    What is ``appended`` is written to the file that is there, and anything else put in its place.

    Raises UsageError, and as ``system_errors`` where none can be made.
    """
    if path is None:
        return
    place = Path(os.path.realpath(path))
    if len(os.fsencode(place.name)) > LONGEST_NAME:
        raise UsageError(f"{option} {path}: the name has more than {LONGEST_NAME} bytes")
    try:
        kind = place.lstat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    if not stat.S_ISREG(kind):
        raise UsageError(f"{option} {path}: what stands there is not a regular file")
    if not place.parent.is_dir():
        raise UsageError(f"{option} {path}: the folder {place.parent} does not exist")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: nothing can be written in {place.parent}")
    if not appended or not os.path.lexists(place):
        try_place(place)
    elif not os.access(place, os.W_OK):
        raise UsageError(f"{option} {path}: it cannot be written to")


def _overlap(source: Path, out: Path) -> str:
    """How an output meets an input; nothing where it does not."""
    if how := _nested(source, out):
        return how
    status = _status(out)
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_nlink < 2:
        return ""
    own = (status.st_dev, status.st_ino)
    return "is a hard link to a file of" if own in _files_of(source) else ""


def _nested(other: Path, out: Path) -> str:
    """Whether ``out`` is, lies in, or holds ``other``, by what stands on the disk."""
    mine, theirs = _line(out), _line(other)
    if mine[0] == theirs[0]:
        return "is"
    if theirs[0] in mine[1:]:
        return "lies in"
    return "holds" if mine[0] in theirs[1:] else ""


def _line(path: Path) -> list[_Identity | str]:
    """A path and the folders above it: what they are where they exist, else their names."""
    place = Path(os.path.realpath(path))
    return [_identity(step) or str(step).casefold() for step in (place, *place.parents)]


def _files_of(source: Path) -> set[_Identity]:
    """Every file of an input."""
    if source.is_file():
        return {found} if (found := _identity(source)) is not None else set()
    found_all: set[_Identity] = set()
    for folder, _, names in os.walk(source):
        for name in names:
            if (found := _identity(Path(folder, name))) is not None:
                found_all.add(found)
        if len(found_all) > _MOST_FILES:
            break
    return found_all


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _identity(path: Path) -> _Identity | None:
    """Device and inode; None where nothing stands, or nothing can be seen."""
    status = _status(path)
    return None if status is None else (status.st_dev, status.st_ino)
