"""A folder in which a run that was killed finds what it had done.

It belongs to one run, known by its *identity*: everything that decides the result. Another run
empties it first; a lock keeps two runs apart. Hidden states are saved from time to time, so that a
resumed walk does not start at the first layer. Files get their names when they are whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from zenconvert.errors import NotEnoughResources, UsageError

SAVE_SECONDS: Final = 60.0
"""Least time between two savings of the hidden states."""

_IDENTITY: Final = "run.json"
_STATES: Final = re.compile(r"hidden-(\d+)\.bin")


class States(Protocol):
    """Hidden states that can be saved."""

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class Workspace:
    """The folder of a run, locked; made by :func:`open_workspace`."""

    def __init__(self, folder: Path, *, save_seconds: float) -> None:
        self.folder, self.save_seconds = folder, save_seconds
        self.saved = time.monotonic()

    @property
    def first_layer(self) -> int:
        """The layer that the saved hidden states go into; 0 when none are saved."""
        return max(self._saved_states(), default=0)

    def load_states(self, states: States) -> None:
        """Read the hidden states that go into :attr:`first_layer`."""
        states.load(self._path(self.first_layer))

    def save_states(self, states: States, layer: int) -> None:
        """Save what goes into ``layer``, unless that was done a short while ago."""
        if time.monotonic() - self.saved < self.save_seconds:
            return
        older = self._saved_states()
        with self.new_file(self._path(layer).name) as path:
            states.save(path)
        for number in older:
            self._path(number).unlink()
        self.saved = time.monotonic()

    def drop_states(self) -> None:
        """Forget the saved hidden states: the next walk begins at the first layer."""
        for number in self._saved_states():
            self._path(number).unlink()

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path to write to; the file is called ``name`` when the block ends without an error."""
        path = self.folder / f"{name}.new"
        try:
            yield path
        except OSError as error:
            raise NotEnoughResources(f"{path}: cannot be written: {error.strerror}") from error
        path.replace(self.folder / name)
        sync_folder(self.folder)

    def _saved_states(self) -> list[int]:
        found = (_STATES.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(match[1]) for match in found if match]

    def _path(self, layer: int) -> Path:
        return self.folder / f"hidden-{layer:05d}.bin"


@contextmanager
def open_workspace(
    folder: Path, identity: Mapping[str, Any], *, save_seconds: float = SAVE_SECONDS
) -> Iterator[Workspace]:
    """Make or reopen the workspace of a run; the folder stays when the block ends.

    Raises UsageError when another run is using it and NotEnoughResources when it cannot be written.
    """
    text = json.dumps(identity, sort_keys=True, indent=2)
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise NotEnoughResources(f"{folder}: cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another run is working here") from None
        workspace = Workspace(folder, save_seconds=save_seconds)
        known = folder / _IDENTITY
        if not known.is_file() or known.read_text(encoding="utf-8") != text:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            with workspace.new_file(_IDENTITY) as path:
                path.write_text(text, encoding="utf-8")
        yield workspace
    finally:
        os.close(lock)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
