"""Output files that get their final names only when they are whole.

Everything is first written into a hidden folder beside the output, ``.NAME.partial``::

    lock    locked as long as a run writes this output
    journal what of ``new`` is written, from time to time
    new/    what will stand beside the hidden folder, under the same names: one file, the parts of a
            split one, or one folder
    old/    what had these names before, while the new takes them

When all of ``new`` is on the disk it gets its names. A file takes the place of an old one, and a
folder is exchanged with one, in a single step. No file system renames several parts in one step:
theirs come and go so that the first part, without which no reader opens the others, is the last
to come and the first to go. What a killed run left is undone by the next run for the same output,
whatever its options: names that only some of the new files had got are taken away, and the old
files come back. A run for the same bytes goes on with what the journal says is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.atomic import hidden_name, sync_folder, system_errors
from zenconvert.base.notes import Journal
from zenconvert.base.places import check_files
from zenconvert.base.scratch import LOCK, children, clear, is_mark, mark, open_scratch
from zenconvert.errors import (
    CorruptFile,
    NotEnoughResources,
    OutputExists,
    SourceNotFound,
    UsageError,
)
from zenconvert.model.layout import Layout, OutputFile
from zenconvert.write.naming import give_name, replace

_CHUNK: Final = 1 << 22
_WEIGHTS: Final = (".safetensors", ".onnx")  # every model folder holds such a file


class Output:
    """Files of one layout under hidden names, written at offsets from any thread.

    Within :meth:`left`: :meth:`open`, write, :meth:`publish`. Until then nothing is visible, and
    what ``force`` would replace is still there; only where removing that fails, the new files
    already have their names.
    """

    def __init__(self, layout: Layout, out: Path, identity: Callable[[], str]) -> None:
        """``identity`` gives what decides the bytes of the output, for the journal."""
        self.layout, self.out, self.parent = layout, out, out.parent
        self.hidden = self.parent / hidden_name(out.name, "partial")
        self.new, self.old = self.hidden / "new", self.hidden / "old"
        self.journal = Journal(self.hidden / "journal", identity)
        self.done: Mapping[str, str] = {}
        """What the journal says is written → digest of its bytes."""
        self.lock: int | None = None
        self.descriptors: dict[str, int] = {}
        self.in_turn = threading.Lock()
        """Of who writes between what others have written."""

    def finals(self) -> list[Path]:
        """Final paths."""
        if self.layout.is_folder:
            return [self.out]
        return [self.parent / file.name for file in self.layout.files]

    def write(self, file: OutputFile, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at an offset. Raises NotEnoughResources and ConversionFailed."""
        view = memoryview(data).cast("B")
        with system_errors(self.out):
            while view:
                written = os.pwrite(self.descriptors[file.name], view, offset)
                view, offset = view[written:], offset + written

    def write_in_turn(
        self, file: OutputFile, offset: int, line: int, array: NDArray[Any], turn: tuple[int, int]
    ) -> None:
        """Write ``array[lines, items]`` into lines that are ``line`` bytes apart, among items of
        others: ``turn`` is which of how many. Raises as :meth:`write`."""
        (at, of), descriptor = turn, self.descriptors[file.name]
        size = of * array.shape[1] * array.itemsize
        many = max(1, _CHUNK // line) if 2 * size > line else 1  # what lies between is read as well
        for first in range(0, len(array), many):
            items, place = array[first : first + many], offset + first * line
            with self.in_turn, system_errors(self.out):
                read = bytearray(os.pread(descriptor, (len(items) - 1) * line + size, place))
                lines = np.ndarray(
                    (len(items), of * array.shape[1]), array.dtype, read,
                    strides=(line, array.itemsize),
                )  # fmt: skip
                lines[:, at::of] = items
                self.write(file, place, memoryview(read))

    def open(self, *, force: bool) -> None:
        """Lock the output, undo what a killed run left, and create every file at its full size.

        What a journal tells of is gone on with.

        Raises OutputExists, UsageError, NotEnoughResources, and SourceNotFound or CorruptFile for a
        side file that is not what was planned.
        """
        with system_errors(self.out):
            self._open(force=force)

    def _open(self, *, force: bool) -> None:
        if self.out.name in {"", ".."}:
            raise UsageError(f"{self.out}: the output needs a name of its own")
        if not self.parent.is_dir():
            raise UsageError(f"{self.parent}: the folder of the output does not exist")
        self._acquire()
        self._undo()
        self.done = self.journal.read() if self._is_whole() else {}
        if self.done:
            self.refuse(force=force)
            for file in self.layout.files:
                path = self.folder(final=False) / file.name
                self.descriptors[file.name] = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                self._fill(file)  # a crash of the machine may have left anything
            return
        clear(self.hidden)
        self.refuse(force=force)
        free = shutil.disk_usage(self.parent).free
        if self.layout.size > free:
            raise NotEnoughResources(
                f"{self.parent}: the output takes {self.layout.size} bytes and {free} are free"
            )
        self.old.mkdir()
        self.folder(final=False).mkdir(parents=True)
        for file in self.layout.files:
            self._create(file)

    def digest(self, file: OutputFile, spans: Iterable[tuple[int, int]]) -> str:
        """SHA-256 of the ``(offset, size)`` pieces of a file. Raises as :meth:`write`."""
        found, descriptor = hashlib.sha256(), self.descriptors[file.name]
        with system_errors(self.out):
            for offset, size in spans:
                for at in range(offset, offset + size, _CHUNK):
                    found.update(os.pread(descriptor, min(_CHUNK, offset + size - at), at))
        return found.hexdigest()

    def remember(self, done: Mapping[str, str]) -> None:
        """Bring what is written to the disk, and put down what that is. Raises as :meth:`write`."""
        with system_errors(self.out):
            for descriptor in self.descriptors.values():
                os.fsync(descriptor)
            self.journal.write(done)
        self.done = dict(done)

    def publish(self, *, force: bool) -> None:
        """Bring everything to the disk, give it its final names and remove what it replaces.

        Raises OutputExists for an output that appeared meanwhile, UsageError, NotEnoughResources
        and ConversionFailed.
        """
        with system_errors(self.out):
            self._publish(force=force)

    def _publish(self, *, force: bool) -> None:
        for descriptor in self.descriptors.values():
            os.fsync(descriptor)
        self._close()
        self.journal.forget()  # from here on, what is in ``new`` may be old
        self.done = {}
        outer = self.folder(final=False)
        inner = {(outer / file.name).parent for file in self.layout.files}
        for folder in (*sorted(inner), outer, self.new, self.hidden):
            sync_folder(folder)
        self.refuse(force=force)
        self._give_names(force=force)
        sync_folder(self.parent)
        clear(self.hidden)
        self._release()

    @contextmanager
    def left(self) -> Iterator[None]:
        """In the end, what has no name yet goes, or is for the next run, which an error says."""
        try:
            yield
        except BaseException as error:
            if self.done:
                error.add_note(f"{self.hidden} keeps what is done; the same command goes on there")
            raise
        finally:
            if not self.done:
                self.discard()
            self._close()
            self._release()

    def tidy(self) -> None:
        """Remove what a run left that was killed after this output had its name."""
        if os.path.lexists(self.hidden):
            with system_errors(self.out):
                self._acquire()
            self.discard()

    def undo(self) -> None:
        """Undo the names that a killed run gave; what it wrote stays. Raises as :meth:`open`."""
        if os.path.lexists(self.hidden):
            try:
                with system_errors(self.out):
                    self._acquire()
                    self._undo()
            finally:
                self._release()

    def discard(self) -> None:
        """Take back what was done; what cannot be taken back now is left to the next run."""
        self._close()
        try:
            if self.lock is not None:
                with suppress(OSError):
                    self._undo()
                    clear(self.hidden)
        finally:
            self._release()

    def folder(self, *, final: bool) -> Path:
        """Where the files of the layout stand in the end, or are written."""
        parent = self.parent if final else self.new
        return parent / self.out.name if self.layout.is_folder else parent

    def _acquire(self) -> None:
        open_scratch(self.hidden)
        self.lock = _locked(self.hidden / LOCK)
        if self.lock is None:
            raise UsageError(f"{self.out}: another run is writing this output")
        mark(self.hidden)

    def _release(self) -> None:
        if self.lock is not None:
            with suppress(OSError):
                # a folder that another run can lock from now on has no mark of this one
                if {LOCK} >= {p.name for p in children(self.hidden) if not is_mark(p)}:
                    for path in filter(is_mark, children(self.hidden)):
                        path.unlink()
                (self.hidden / LOCK).unlink()
            os.close(self.lock)
            self.lock = None
        with suppress(OSError):  # not empty: another run's, or somebody's
            self.hidden.rmdir()

    def refuse(self, *, force: bool) -> None:
        """Refuse names that are taken and may not be replaced. Raises OutputExists."""
        for final in filter(os.path.lexists, self.finals()):
            folder, odd = self.layout.is_folder, final.exists() and not final.is_file()
            if not _is_model_folder(final) if folder else odd:
                what = "a model folder" if folder else "a file"
                raise OutputExists(f"{final}: it is not {what}, all that --force replaces")
            if not force:
                raise OutputExists(f"{final}: the output exists; remove it or use --force")

    def _is_whole(self) -> bool:
        """Whether ``new`` has every file at its size, and none has its name already."""
        named = any(_is_same(path, self.parent / path.name) for path in children(self.new))
        files = [(self.folder(final=False) / f.name, f.size) for f in self.layout.files]
        whole = all(path.is_file() and path.lstat().st_size == size for path, size in files)
        return whole and not named and not children(self.old)

    def _create(self, file: OutputFile) -> None:
        path = self.folder(final=False) / file.name
        path.parent.mkdir(exist_ok=True)  # some formats have a folder in the folder
        self.descriptors[file.name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # reserve the space now: a full disk is found before any work is done
        if file.size:
            os.posix_fallocate(self.descriptors[file.name], 0, file.size)
        self._fill(file)

    def _fill(self, file: OutputFile) -> None:
        """Write what is known of a file before any tensor is."""
        for offset, data in file.literals:
            self.write(file, offset, data)
        if file.copy_of is not None:
            for offset, data in _slabs_of(file.copy_of, file.size):
                self.write(file, offset, data)

    def _close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}

    def _give_names(self, *, force: bool) -> None:
        first, *others = self.finals()
        replaced = [final for final in (first, *others) if force and os.path.lexists(final)]
        if replaced and not others and replace(self.new / first.name, first):
            return
        for final in replaced:
            final.rename(self.old / final.name)
        for final in reversed(others):
            give_name(self.new / final.name, final)
        sync_folder(self.parent)
        give_name(self.new / first.name, first)

    def _undo(self) -> None:
        """Unless all new files have their names, take these away and bring the old files back.

        Asks nothing but the disk, for the run that is undone may have had another layout.
        """
        new, old = (sorted(children(folder)) for folder in (self.new, self.old))
        named = [path for path in new if _is_same(path, self.parent / path.name)]
        if len(named) == len(new) or not (named or old):
            return
        for path in named:
            (self.parent / path.name).unlink()
        for path in reversed(old):
            final = self.parent / path.name
            if path.is_symlink() or path.is_file() or not os.path.lexists(final):
                path.replace(final)
        sync_folder(self.parent)


def _locked(path: Path) -> int | None:
    """Descriptor of the locked file; None where another run holds it or has just removed it."""
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as failing:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        failing.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.lstat()):
            failing.pop_all()
            return lock
    return None


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and any(p.suffix in _WEIGHTS for p in path.iterdir())


def _slabs_of(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """A side file in slabs: offset and bytes. Raises CorruptFile where it has another size now."""
    found = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                if found + len(data) > size:
                    break
                yield found, data
                found += len(data)
            now = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    if now != size:
        raise CorruptFile(
            f"{path}: has {now} bytes now and had {size} when the conversion was planned; "
            "run it again"
        )


def _is_same(one: Path, other: Path) -> bool:
    """True for two names of one file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def refuse_source(layout: Layout, out: Path, read: Iterable[Path]) -> None:
    """Refuse names that files of the source have. Raises UsageError."""
    check_files("OUT", out, Output(layout, out, str).finals(), read)


def refuse_taken(layout: Layout, out: Path, *, force: bool) -> None:
    """Refuse names that are taken, before hours of work, and undo what a killed run left of them.

    Raises as :meth:`Output.open`.
    """
    output = Output(layout, out, str)
    output.undo()
    output.refuse(force=force)
