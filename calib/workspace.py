"""A folder in which a run that was killed finds what it had done.

It belongs to one run, known by its *identity*: everything that decides the result. Another run
empties it first; a lock keeps two runs apart. Hidden states are saved from time to time, so that a
resumed walk does not start at the first layer. Files get their names when they are whole, and are
there for the next run only as long as they hold the same (:mod:`zenconvert.base.scratch`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from zenconvert.base.atomic import sync_folder, system_errors, write_whole
from zenconvert.base.scratch import clear, forget, held_scratch, is_kept, keep

SAVE_SECONDS: Final = 60.0
"""Least time between two savings of the hidden states."""

_IDENTITY: Final = "run.json"
_STATES: Final = re.compile(r"hidden-(\d+)\.bin")


class States(Protocol):
    """Hidden states that can be saved."""

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class Workspace:
    """The folder of a run, locked; made by :func:`open_workspace`.

    What it does raises as ``system_errors``, also where somebody removes the folder meanwhile.
    """

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
        self._forget(older)
        self.saved = time.monotonic()

    def drop_states(self) -> None:
        """Forget the saved hidden states: the next walk begins at the first layer."""
        self._forget(self._saved_states())

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path to write to; the file is called ``name`` when the block ends without an error."""
        path, final = self.folder / f"{name}.new", self.folder / name
        with system_errors(path):
            path.unlink(missing_ok=True)
            yield path
            path.replace(final)
            keep(final)
            sync_folder(self.folder)

    def _saved_states(self) -> list[int]:
        with system_errors(self.folder):
            found = [_STATES.fullmatch(path.name) for path in self.folder.iterdir()]
        numbers = [int(match[1]) for match in found if match]
        return [number for number in numbers if is_kept(self._path(number))]

    def _forget(self, layers: Iterable[int]) -> None:
        with system_errors(self.folder):
            for layer in layers:
                forget(self._path(layer))

    def _path(self, layer: int) -> Path:
        return self.folder / f"hidden-{layer:05d}.bin"


@contextmanager
def open_workspace(
    folder: Path, identity: Mapping[str, Any], *, save_seconds: float = SAVE_SECONDS
) -> Iterator[Workspace]:
    """Make or reopen the workspace of a run; the folder stays when the block ends.

    Raises UsageError when another run is using it or the folder is somebody's, and as
    ``system_errors`` when it cannot be written.
    """
    text = json.dumps(identity, sort_keys=True, indent=2)
    with held_scratch(folder):
        workspace = Workspace(folder, save_seconds=save_seconds)
        known = folder / _IDENTITY
        with system_errors(folder):
            if not known.is_file() or known.read_bytes() != text.encode():
                clear(folder)
                write_whole(known, text)
        yield workspace
