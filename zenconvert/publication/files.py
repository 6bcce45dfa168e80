"""Small files of a release."""

from __future__ import annotations

from pathlib import Path

from zenconvert.base.atomic import write_whole


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, unless it is there already. Raises as ``write_whole``."""
    if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
        return
    write_whole(path, data)
