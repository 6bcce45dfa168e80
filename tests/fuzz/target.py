"""A reader and how its inputs are made; one input at a time in a folder of its own."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz import guard
from tests.fuzz.choices import Choices
from tests.fuzz.guard import Fault
from tests.fuzz.models import Files

SECONDS = 2.0
"""Of the processor, for one input."""
_MARKS = 1 << 27
"""Bits of the memory of inputs: one in a hundred of a million inputs is taken for another."""


@dataclass(frozen=True)
class Target:
    """One reader under one kind of input."""

    name: str
    base: Callable[[], Files]
    """What lies in the folder before anything is changed."""
    mutate: Callable[[Choices, Files], Files]
    """The files that an input changes; their names are always the same."""
    read: Callable[[Path], object]
    cheap: bool = False
    """Thousands of inputs a second."""


def memory_place() -> str | None:
    """Memory rather than a disk, where there is such a place."""
    memory = Path("/dev/shm")
    return str(memory) if os.access(memory, os.W_OK) else None


class Bench:
    """A folder in which the inputs of a target are laid out, one after another.

    ``place`` is an empty folder; by default one that :meth:`close` removes.
    """

    def __init__(self, target: Target, seconds: float = SECONDS, place: Path | None = None) -> None:
        self.target, self.seconds = target, seconds
        self._own: TemporaryDirectory[str] | None = None
        if place is None:
            self._own = TemporaryDirectory(prefix=f"fuzz-{target.name}-", dir=memory_place())
            place = Path(self._own.name)
        self.folder = place / "input"
        self.base = target.base()
        self._now: Files = {}
        self._open: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._marks = bytearray(_MARKS >> 3)
        self._lay(self.base)
        self._start = guard.forget_peak()

    def close(self) -> None:
        """Remove the folder."""
        for file in self._open.values():
            os.close(file)
        self._open.clear()
        if self._own is not None:
            self._own.cleanup()

    def run(self, choices: Choices) -> Fault | None:
        """One input."""
        return self.read(self.target.mutate(choices, self.base))

    def fresh(self, choices: Choices) -> Files | None:
        """What an input changes; None where the run has had these files already."""
        files = self.target.mutate(choices, self.base)
        mark = hash(tuple(files.values())) % _MARKS
        byte, bit = mark >> 3, 1 << (mark & 7)
        if self._marks[byte] & bit:
            return None
        self._marks[byte] |= bit
        return files

    def read(self, files: Files) -> Fault | None:
        """One input whose changed files are known."""
        self._lay(files)
        return self._read(self.seconds)

    def plain(self) -> Fault | None:
        """The input that nothing was changed in; what comes after it counts from here."""
        self._lay({})
        self.target.read(self.folder)  # what is loaded once is nobody's fault
        fault = self._read(10 * self.seconds)
        gc.collect()
        gc.freeze()  # what is loaded once is looked through once
        self._start = guard.forget_peak()  # what the reader loads once
        return fault

    def _read(self, seconds: float) -> Fault | None:
        return guard.run(self.target.read, self.folder, seconds=seconds, start=self._start)

    def keep(self, where: Path) -> None:
        """Copy the input of the last run."""
        shutil.copytree(self.folder, where, dirs_exist_ok=True)

    def _lay(self, files: Files) -> None:
        """The base with some files changed; those that the last input changed are put back."""
        back = [name for name in self._dirty if name not in files and name in self.base]
        self._write((name, self.base[name]) for name in back)
        self._write(files.items())
        self._dirty = {name for name in files if files[name] is not self.base.get(name)}

    def _write(self, files: Iterable[tuple[str, bytes]]) -> None:
        for name, data in files:
            if self._now.get(name) == data:
                continue
            if name not in self._open:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            file = self._open[name]  # to open it again takes longer than to write it
            os.pwrite(file, data, 0)
            os.ftruncate(file, len(data))
            self._now[name] = data
