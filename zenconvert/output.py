"""Output files that get their final names only when they are whole.

Files are written under temporary names (``.NAME.partial…``) in the folder of the output, flushed to
the disk and then renamed. Whatever happens before, nothing stands under a final name. What a killed
run left is taken over by the next run for the same output; a lock keeps two runs apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zenconvert.errors import NotEnoughResources, OutputExists, UsageError
from zenconvert.layout import Layout, OutputFile


class Output:
    """Open files of one layout under temporary names, written at offsets from any thread."""

    def __init__(self, layout: Layout, out: Path) -> None:
        self.layout, self.out = layout, out
        self.mark = f".{out.name}.partial"
        self.folder = out.parent / self.mark if layout.is_folder else out.parent
        self.lock: int | None = None
        self.descriptors: dict[str, int] = {}

    def temporary(self, file: OutputFile) -> Path:
        """Where a file is written before it is whole."""
        if self.layout.is_folder:
            return self.folder / file.name
        return self.folder / f"{self.mark}.{file.name}"

    def finals(self) -> list[Path]:
        """Final paths."""
        if self.layout.is_folder:
            return [self.out]
        return [self.out.parent / file.name for file in self.layout.files]

    def write(self, file: OutputFile, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at an offset. Raises NotEnoughResources on a full disk."""
        view = memoryview(data).cast("B")
        try:
            while view:
                written = os.pwrite(self.descriptors[file.name], view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _write_error(self.out, error) from error

    def _acquire(self) -> None:
        """Lock the temporary place; what an earlier, dead run left there goes."""
        place = self.out.parent / self.mark
        if self.layout.is_folder:
            place.mkdir(exist_ok=True)
            self.lock = os.open(place, os.O_RDONLY)
        else:
            self.lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.lock)
            self.lock = None
            raise UsageError(f"{self.out}: another run is writing this output") from None
        if self.layout.is_folder:
            for left in place.iterdir():
                _remove(left)

    def _create(self) -> None:
        for file in self.layout.files:
            path = self.temporary(file)
            if path.parent != self.folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            if file.copy_of is not None:
                shutil.copyfile(file.copy_of, path)
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self.descriptors[file.name] = os.open(path, flags, 0o644)
            # reserve the space now: a full disk is found before any work is done
            if file.size:
                os.posix_fallocate(self.descriptors[file.name], 0, file.size)
            for offset, data in file.literals:
                self.write(file, offset, data)

    def _finish(self, *, force: bool) -> None:
        for descriptor in self.descriptors.values():
            os.fsync(descriptor)
        self._close()
        if self.layout.is_folder:
            if force and self.out.exists():
                _remove(self.out)
            self.folder.rename(self.out)
        else:
            for file, final in zip(self.layout.files, self.finals(), strict=True):
                self.temporary(file).replace(final)
            (self.out.parent / self.mark).unlink()
        self._release()
        _sync_folder(self.out.parent)

    def _close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}

    def _release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _discard(self) -> None:
        if self.lock is None:
            return  # the temporary place belongs to somebody else
        self._close()
        if self.layout.is_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for file in self.layout.files:
                self.temporary(file).unlink(missing_ok=True)
            (self.out.parent / self.mark).unlink(missing_ok=True)
        self._release()


@contextmanager
def open_output(layout: Layout, out: Path, *, force: bool) -> Iterator[Output]:
    """Create, fill and publish the files of a layout.

    On leaving the block without an error the files get their final names; after an error, nothing
    is left. Raises OutputExists, UsageError and NotEnoughResources.
    """
    output = Output(layout, out)
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: the folder of the output does not exist")
    if existing := [p for p in output.finals() if p.exists() or p.is_symlink()]:
        if not force:
            raise OutputExists(f"{existing[0]}: the output exists; remove it or use --force")
        if layout.is_folder and not (out / "config.json").is_file():
            raise OutputExists(f"{out}: --force only replaces a model folder, and this is none")
        if not layout.is_folder and any(p.is_dir() for p in existing):
            raise OutputExists(f"{out}: --force does not replace a folder with a file")
    free = shutil.disk_usage(out.parent).free
    if layout.size > free:
        raise NotEnoughResources(
            f"{out.parent}: the output takes {layout.size} bytes and {free} are free"
        )
    try:
        try:
            output._acquire()
            output._create()
        except OSError as error:
            raise _write_error(out, error) from error
        yield output
        try:
            output._finish(force=force)
        except OSError as error:
            raise _write_error(out, error) from error
    except BaseException:
        output._discard()
        raise


def _write_error(out: Path, error: OSError) -> NotEnoughResources | UsageError:
    text = f"{out}: cannot be written: {error.strerror}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}:
        return NotEnoughResources(text)
    return UsageError(text)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
