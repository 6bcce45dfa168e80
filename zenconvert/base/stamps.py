"""Whether files are still what they were when they were opened: size, time and inode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from zenconvert.errors import CorruptFile, SourceNotFound

Stamp = tuple[int, int, int]
"""Size in bytes, time of the last change of the data in nanoseconds, inode."""


def stamp(path: Path) -> Stamp:
    """The stamp of a file. Raises SourceNotFound."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def stamps_at(path: Path) -> dict[Path, Stamp]:
    """The stamps of a file, or of those in a folder. Raises SourceNotFound."""
    try:
        paths = list(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    return {one: stamp(one) for one in paths if one.is_file()}


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Raise CorruptFile for a file that is another one now, SourceNotFound for one that is gone."""
    for path, before in stamps.items():
        now = stamp(path)
        if now != before:
            size, was = now[0], before[0]
            told = f"{was} bytes before, {size} now" if size != was else f"{size} bytes as before"
            raise CorruptFile(
                f"{path}: was changed while the run was reading it ({told}): what was made would "
                "be a mixture, and has been discarded; run it again"
            )
