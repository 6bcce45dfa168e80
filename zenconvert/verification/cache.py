"""The cache folder: what a run leaves for the next one, and what may be deleted at any time.

``$ZENCONVERT_CACHE``, else the platform's cache folder. A file gets its name when it is whole;
concurrent runs may write the same one, and the last wins with the same content. The cache takes no
more than is left free on its disk: beyond that, what was unused for longest goes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_VARIABLE: Final = "ZENCONVERT_CACHE"
_PARTIAL: Final = ".partial"
_ABANDONED_S: Final = 24 * 3600  # a run that is alive writes more often


def cache_folder() -> Path:
    """The folder; it need not exist yet."""
    if given := os.environ.get(_VARIABLE):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zenconvert"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zenconvert"


@contextmanager
def new_file(path: Path, size: int = 0) -> Iterator[Path | None]:
    """A temporary path beside ``path`` to be written, which then gets its name.

    Yields None, and nothing is kept, where ``size`` bytes cannot be had or the folder cannot be
    written. An OSError in the block (a full disk) is no error either: the cache stays without.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = _make_room(path.parent, size)
        handle, name = tempfile.mkstemp(suffix=_PARTIAL, prefix=f".{path.name}.", dir=path.parent)
    except OSError:
        room = False
    if not room:
        yield None
        return
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Whoever is to make ``path`` as well waits until this block is left, and then finds it there.
    Where files cannot be locked nobody waits, and the same work is done twice."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # another one removed it
            lock.unlink()
        os.close(handle)


def touch(path: Path) -> None:
    """Note that a file was used."""
    with suppress(OSError):  # another run removed it; who has it open keeps it
        os.utime(path)


def _make_room(folder: Path, size: int) -> bool:
    """Remove leftovers and the oldest files until ``size`` bytes fit; False where they cannot."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another run renamed or removed it
            state = path.stat()
            if path.suffix != _PARTIAL:
                found.append((state.st_mtime, state.st_size, path))
            elif time.time() - state.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
    used = sum(length for _, length, _ in found)
    free = shutil.disk_usage(folder).free
    for _, length, path in sorted(found):
        if used + size <= free - size:
            break
        path.unlink(missing_ok=True)
        used, free = used - length, free + length
    return size < free
