"""Files that appear whole and on the disk, or not at all.

A file is written beside its place under a hidden random name, which is opened only if nothing has
it, and takes its own name in a single step. A link in its place is replaced, never written through.
The hidden name has a checksum, and its file is locked while it is written: so a later run knows
what a killed one left (:func:`drop_stale`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from zenconvert.errors import (
    ConversionFailed,
    NotEnoughResources,
    OutputExists,
    UsageError,
    ZenError,
)

LONGEST_NAME: Final = 255  # bytes, on every usual file system
NOT_SUPPORTED: Final = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_NO_RESOURCES: Final = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE
}  # fmt: skip
_BAD_PLACE: Final = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
    errno.ENOENT, errno.ENOTDIR, errno.EBUSY, errno.EXDEV,
}  # fmt: skip
_TAKEN: Final = {errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR}


@contextmanager
def system_errors(out: Path) -> Iterator[None]:
    """Turn what the system refuses while ``out`` is written into our own errors.

    Raises NotEnoughResources, OutputExists, UsageError or ConversionFailed.
    """
    try:
        yield
    except ZenError:
        raise
    except OSError as error:
        raise _own(error, out) from error


def _own(error: OSError, out: Path) -> ZenError:
    where = f" ({error.filename})" if error.filename is not None else ""
    text = f"{out}: cannot be written: {error.strerror or error}{where}"
    if error.errno in _NO_RESOURCES:
        return NotEnoughResources(text)
    if error.errno in _TAKEN:
        return OutputExists(text)
    if error.errno in _BAD_PLACE:
        return UsageError(text)
    return ConversionFailed(text)


class _Raw(io.FileIO):
    """A file whose refused writes are told as those of the file that it will be."""

    def __init__(self, descriptor: int, out: Path) -> None:
        super().__init__(descriptor, "wb")
        self.out = out

    def write(self, data: Any, /) -> int:
        """Raises as :func:`system_errors`."""
        with system_errors(self.out):
            return super().write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends without an error.

    What else fails in the block is not taken for a failed write. Raises as :func:`system_errors`.
    """
    with system_errors(path):
        temporary, descriptor = _open_temporary(path)
    try:
        raw: io.FileIO = _Raw(descriptor, path)
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            with system_errors(path):
                os.fsync(file.fileno())
        with system_errors(path):
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _open_temporary(path: Path) -> tuple[Path, int]:
    """A locked file under a hidden name. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    while True:
        temporary = path.with_name(_temporary_name(path.name, secrets.token_hex(4)))
        descriptor = os.open(temporary, flags, 0o666)
        with suppress(OSError):  # where nothing can be locked, nothing is taken for stale either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)  # taken for stale before it was locked


def try_place(path: Path) -> None:
    """Make and remove a file where :func:`new_file` will make one. Raises as :func:`system_errors`.

    A disk may be full, failing or read-only whatever its permissions say.
    """
    with system_errors(path):
        temporary, descriptor = _open_temporary(path)
        os.close(descriptor)
        temporary.unlink()


def _temporary_name(name: str, word: str) -> str:
    checksum = hashlib.sha256(os.fsencode(name) + word.encode()).hexdigest()[:8]
    return hidden_name(name, f"{word}{checksum}.partial")


def drop_stale(path: Path) -> None:
    """Remove what killed runs left of :func:`new_file` for this path.

    That is files of the same user under one of its hidden names that no run has locked; whatever
    else stands there, or cannot be looked at or removed, stays.
    """
    with suppress(OSError):
        for found in path.parent.iterdir():
            word = re.search(r"\.([0-9a-f]{8})[0-9a-f]{8}\.partial$", found.name)
            if word is not None and found.name == _temporary_name(path.name, word[1]):
                with suppress(OSError):
                    _drop(found)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        state = os.fstat(descriptor)
        if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and state.st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                path.unlink()
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a small file; text is UTF-8. Raises as :func:`system_errors`."""
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def append_whole(path: Path, text: str) -> None:
    """Put text at the end of a file, all of it or nothing. Raises as :func:`system_errors`."""
    if not os.path.lexists(path):
        write_whole(path, text)
        return
    data = memoryview(text.encode())
    with system_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def hidden_name(name: str, suffix: str) -> str:
    """``.NAME.SUFFIX``, with a digest in place of a name that would be too long."""
    hidden = f".{name}.{suffix}"
    if len(os.fsencode(hidden)) > LONGEST_NAME:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.{suffix}"
    return hidden
