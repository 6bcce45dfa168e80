"""Word that a run leaves to the next one, which may come after it was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from zenconvert.base.atomic import system_errors, write_whole
from zenconvert.base.source_files import parse_json
from zenconvert.errors import InvalidInput


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

    def read(self) -> dict[str, str]:
        """What is done → digest of its bytes; nothing where there is no journal of this output."""
        known = read_word(self.path)
        if not isinstance(known, dict) or known.get("identity") != self.identity:
            return {}
        done = known.get("done")
        return done if isinstance(done, dict) else {}

    def write(self, done: Mapping[str, str]) -> None:
        """Put down what is done; the journal is on the disk when the call returns."""
        write_word(self.path, {"identity": self.identity, "done": dict(done)})

    def forget(self) -> None:
        """Nothing is done any more."""
        self.path.unlink(missing_ok=True)


def read_word(path: Path) -> Any:
    """What was left in a file; None where there is none, or what no run would leave."""
    try:
        return parse_json(path)
    except InvalidInput:
        return None


def write_word(path: Path, word: Any) -> None:
    """Leave something in a file. Raises as :func:`zenconvert.base.atomic.write_whole`."""
    write_whole(path, json.dumps(word))


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing. Raises as ``system_errors``."""
    with system_errors(path):
        path.mkdir(parents=True, exist_ok=True)
