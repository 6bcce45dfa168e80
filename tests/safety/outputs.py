"""Outputs of every shape, and what stands in a folder after a run was disturbed."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zenconvert.conversion import run
from zenconvert.planning.plan import Plan

Files = dict[str, str]
"""Path relative to a folder → SHA-256."""


def everything(folder: Path) -> Files:
    """Every file below a folder, hidden ones too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def finals(folder: Path) -> Files:
    """:func:`everything` but what has a hidden name."""
    return {name: digest for name, digest in everything(folder).items() if name[0] != "."}


def names(folder: Path) -> set[str]:
    """Everything that stands in a folder, hidden things too."""
    return {path.name for path in folder.iterdir()}


@dataclass(frozen=True)
class Case:
    """One shape of output, and another output that has the same names and other bytes."""

    source: Path
    out: str
    arguments: tuple[str, ...]
    """What the command line takes beside source and output."""
    plan: Plan
    old_plan: Plan
    new: Files
    """What stands in a folder after a run."""
    old: Files

    def write(self, folder: Path, **given: Any) -> None:
        """Carry out the plan in a folder."""
        run(self.plan, folder / self.out, **given)

    def write_old(self, folder: Path, **given: Any) -> None:
        """Carry out the other plan, under the same name."""
        run(self.old_plan, folder / self.out, **given)

    def is_harmless(self, found: Files) -> bool:
        """True for nothing, and for parts without the first: no reader opens these."""
        known = {*self.new.items(), *self.old.items()}
        return min(self.new) not in found and found.items() <= known

    def command(self, folder: Path) -> list[str]:
        """The run as a command."""
        out = str(folder / self.out)
        return [
            sys.executable, "-m", "zenconvert", "convert", str(self.source), out, *self.arguments
        ]  # fmt: skip


def fresh(folder: Path) -> Path:
    """An empty folder; what stood there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def fail(number: int) -> Callable[[], object]:
    """A function that raises what the system would raise."""

    def failing() -> None:
        raise OSError(number, os.strerror(number))

    return failing


def after(
    monkeypatch: pytest.MonkeyPatch, function: str, calls: int, then: Callable[[], object]
) -> None:
    """Let ``os.function`` do ``then`` first, in every call after so many."""
    real, count = getattr(os, function), itertools.count()

    def wrapped(*arguments: Any) -> Any:
        if next(count) >= calls:
            then()
        return real(*arguments)

    monkeypatch.setattr(os, function, wrapped)
