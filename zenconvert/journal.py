"""Word that a run leaves to the next one, which may come after it was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from zenconvert.errors import NotEnoughResources


class Journal:
    """What of an output is in its files already.

    A journal belongs to one output, known by its *identity*: everything that decides its bytes.
    That of another one says nothing.
    """

    def __init__(self, path: Path, identity: Callable[[], str]) -> None:
        """``identity`` is asked once, and only when there is something to read or write."""
        self.path, self._identity = path, identity

    @cached_property
    def identity(self) -> str:
        """Everything that decides the bytes of the output, digested."""
        return self._identity()

    def read(self) -> frozenset[str]:
        """Names of what is done; none where there is no journal of this output."""
        known = read_word(self.path)
        if not isinstance(known, dict) or known.get("identity") != self.identity:
            return frozenset()
        return frozenset(known.get("done", ()))

    def write(self, done: Collection[str]) -> None:
        """Put down what is done; the journal is on the disk when the call returns."""
        write_word(self.path, {"identity": self.identity, "done": sorted(done)})

    def forget(self) -> None:
        """Nothing is done any more."""
        self.path.unlink(missing_ok=True)


def read_word(path: Path) -> Any:
    """What was left in a file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_word(path: Path, word: Any) -> None:
    """Leave something in a file that is whole and on the disk when it has its name.

    Raises NotEnoughResources.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(word, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise NotEnoughResources(f"{path}: cannot be written: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing. Raises NotEnoughResources."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotEnoughResources(f"{path}: cannot be made: {error.strerror}") from error
