"""Folders that runs work in beside their outputs, and that later runs may empty.

A run touches such a folder only if a run made it: it holds a *mark*, a file whose random name
stands in it too. A link, a file and somebody's folder of that name are refused; an empty folder has
nothing to lose and is taken. Nothing is opened through a link.

What a run keeps there for the next one has its size and digest beside it, ``NAME.sum``: a crash of
the machine may leave zeros or garbage under a name, and such a file counts as not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from zenconvert.base.atomic import system_errors, write_whole
from zenconvert.errors import NotEnoughResources, UsageError

LOCK: Final = "lock"
"""A file that keeps two runs apart; a folder that holds nothing else is as good as empty."""

_MARK: Final = re.compile(r"zenconvert-([0-9a-f]{32})")
DONE: Final = ".done"
"""Suffix of files that say what of another file is done."""

_SUM: Final = ".sum"
_KEPT: Final = {DONE, _SUM}
_NO_LINK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def open_scratch(folder: Path) -> None:
    """Make a folder to work in, or take one that a run made.

    Call :func:`mark` once the folder is locked. Raises UsageError for what is not ours, and as
    ``system_errors``.
    """
    with system_errors(folder):
        with suppress(FileExistsError):
            folder.mkdir()
        kind = os.lstat(folder).st_mode
        if stat.S_ISLNK(kind):
            raise UsageError(f"{folder}: a link stands where the run would work; remove it")
        if not stat.S_ISDIR(kind):
            raise UsageError(f"{folder}: a file stands where the run would work; move it away")
        if not is_ours(folder):
            raise UsageError(
                f"{folder}: this folder stands where the run would work, {_whose(folder)}"
            )


@contextmanager
def held_scratch(folder: Path) -> Iterator[Path]:
    """A folder to work in that no other run works in; it stays when the block ends.

    After an error it stays only if something in it is of use to the next run; the error then says
    so. Raises UsageError when another run works there, and as :func:`open_scratch`.
    """
    open_scratch(folder)
    with system_errors(folder):
        descriptor = os.open(folder, _NO_LINK | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{folder}: another run is working here") from error
        try:
            mark(folder)
            yield folder
        except BaseException as error:
            if any(path.suffix in _KEPT for path in folder.rglob("*")):
                error.add_note(f"{folder} keeps what is done; the same command goes on from there")
            else:
                remove_scratch(folder)
            raise
    finally:
        os.close(descriptor)


def is_ours(folder: Path) -> bool:
    """Whether a folder (no link) was made by a run, or holds nothing. Raises OSError."""
    descriptor = os.open(folder, _NO_LINK | os.O_DIRECTORY)
    try:
        names = [entry.name for entry in os.scandir(descriptor)]
        return not set(names) - {LOCK} or any(_is_mark(name, descriptor) for name in names)
    finally:
        os.close(descriptor)


def mark(folder: Path) -> None:
    """Let later runs know that a folder is ours. Raises as ``system_errors``."""
    if any(is_mark(path) for path in children(folder)):
        return
    word = secrets.token_hex(16)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with system_errors(folder):
        path = folder / f"zenconvert-{word}"
        descriptor = os.open(path, flags, 0o666)
        try:
            os.write(descriptor, word.encode())
            os.fsync(descriptor)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)


def is_mark(path: Path) -> bool:
    """Whether a path has the name of a mark."""
    return _MARK.fullmatch(path.name) is not None


def clear(folder: Path) -> None:
    """Remove what is in a folder of ours, but for its lock and its mark. Raises OSError."""
    for path in children(folder):
        if path.name != LOCK and not is_mark(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link itself, or a folder with all that is in it. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_scratch(folder: Path) -> None:
    """Remove a folder to work in, if it is ours; what cannot be removed is left."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(folder).st_mode) and is_ours(folder):
            shutil.rmtree(folder)


def children(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    return list(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes when the block ends. Raises NotEnoughResources where there can be none."""
    with new_temporary_folder() as name:
        yield Path(name)


def new_temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with the object. Raises NotEnoughResources where there can be none."""
    with _somewhere():
        return tempfile.TemporaryDirectory(prefix="zenconvert-")


def temporary_file(suffix: str) -> tempfile._TemporaryFileWrapper[bytes]:
    """A file that goes when it is closed. Raises NotEnoughResources where there can be none."""
    with _somewhere():
        return tempfile.NamedTemporaryFile(prefix="zenconvert-", suffix=suffix)


@contextmanager
def _somewhere() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotEnoughResources(
            f"there is no folder for temporary files ({error}); set TMPDIR to one that can be "
            "written and has room"
        ) from error


def sum_of(path: Path) -> Path:
    """Where the size and digest of a kept file stand."""
    return path.with_name(path.name + _SUM)


def keep(path: Path) -> None:
    """Put down what a finished file holds. Raises as ``system_errors``."""
    with system_errors(path):
        text = _summed(path)
    write_whole(sum_of(path), text)


def is_kept(path: Path) -> bool:
    """Whether a file is there and holds what it held when it was finished."""
    try:
        state = path.lstat()
        known = _read_plain(sum_of(path))
        if not stat.S_ISREG(state.st_mode) or known.split(b" ")[0] != b"%d" % state.st_size:
            return False
        return known == _digest(path, state.st_size, state.st_mtime_ns, state.st_ino).encode()
    except OSError:
        return False


def forget(path: Path) -> None:
    """Remove a kept file, or what stands in its place. Raises OSError."""
    for one in (sum_of(path), path):
        if os.path.lexists(one):
            remove(one)


def _read_plain(path: Path) -> bytes:
    """The beginning of a small file; nothing of what is no plain file, and no waiting for it.

    Raises OSError.
    """
    descriptor = os.open(path, _NO_LINK)
    try:
        return os.read(descriptor, 256) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def _summed(path: Path) -> str:
    state = path.lstat()
    return _digest(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, *state: int) -> str:
    """Size and SHA-256, read once as long as the file has the same state."""
    with path.open("rb") as file:
        return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _whose(folder: Path) -> str:
    """Why a folder is not ours, and what to do."""
    found = next((path for path in children(folder) if is_mark(path)), None)
    if found is None:
        return "and no run of zenconvert made it; move it away"
    return (
        f"and its mark {found.name} is damaged: a run would have written there what follows the "
        "hyphen of its name. Remove the folder, or write that again if it is of a run of zenconvert"
    )


def _is_mark(name: str, folder: int) -> bool:
    """Whether a name in an open folder is that of a mark, and the file says the same, or only the
    beginning of it, or zeros: a run may have been killed, or the machine, before it was written."""
    match = _MARK.fullmatch(name)
    if match is None:
        return False
    try:
        descriptor = os.open(name, _NO_LINK, dir_fd=folder)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        return match[1].encode().startswith(os.read(descriptor, 64).rstrip(b"\0"))
    finally:
        os.close(descriptor)
