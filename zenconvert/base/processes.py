"""How processes of our own are started.

Nothing is imported from the folder that a user happens to stand in: not by the interpreter's own
rule (``-P``), and not through an entry of ``PYTHONPATH`` that means the current folder. Nor are
programs looked for there, whatever ``PATH`` says. Libraries that look for more of themselves where
the process stands, as llama.cpp does for its backends, are loaded away from there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_SAFE: Final = {"PYTHONSAFEPATH": "1"}
"""What ``-P`` says, to the interpreters that libraries start in such a process."""
_PATIENT: Final = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait for one another sleep. By default they spin, and where other work has the cores
llama.cpp takes seconds for a token instead of hundredths of one."""
_INSTALLED: Final = {"site-packages", "dist-packages"}


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of such a process: this one's and ``more``, and a path to this package."""
    path = _absolute(os.environ.get("PYTHONPATH", ""))
    if _ROOT.name not in _INSTALLED:
        path.append(str(_ROOT))
    paths = {
        "PATH": os.pathsep.join(_absolute(os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(path),
    }
    return {**_PATIENT, **os.environ, **_SAFE, **paths, **more}


def _absolute(places: str) -> list[str]:
    """The entries of a search path that do not depend on where somebody stands."""
    return [place for place in places.split(os.pathsep) if Path(place).is_absolute()]


NEUTRAL: Final = os.sep
"""A folder that no stranger writes to."""


@contextmanager
def away() -> Iterator[None]:
    """Stand in :data:`NEUTRAL` meanwhile, and then again where the process stood: in main threads
    only, and with absolute paths."""
    before = os.open(os.curdir, getattr(os, "O_PATH", os.O_RDONLY))  # it may have been removed
    try:
        os.chdir(NEUTRAL)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def signal_name(number: int) -> str:
    """The name of a signal that ended a process; its number where the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
