"""How processes of our own are started.

Nothing is imported from the folder that a user happens to stand in: not by the interpreter's own
rule (``-P``), not through an entry of a search path that means the current folder, and not by
libraries that look for more of themselves where the process stands, as llama.cpp does for its
backends: processes of ours stand elsewhere. So they are told whole paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from zenconvert.base.surroundings import settle

_ROOT: Final = Path(__file__).resolve().parents[2]
_SAFE: Final = {"PYTHONSAFEPATH": "1"}
"""What ``-P`` says, to the interpreters that libraries start in such a process."""
_PATIENT: Final = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait for one another sleep. By default they spin, and where other work has the cores
llama.cpp takes seconds for a token instead of hundredths of one."""
_INSTALLED: Final = {"site-packages", "dist-packages"}
NEUTRAL: Final = os.sep
"""A folder that no stranger writes to."""


def start(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[bytes]:
    """Start a process that stands in :data:`NEUTRAL`, with :func:`child_environment`; ``more`` is
    for :class:`subprocess.Popen`."""
    return subprocess.Popen(
        command, cwd=NEUTRAL, env=child_environment(**(environment or {})), **more
    )


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of such a process: this one's and ``more``, and a path to this package.

    Nothing in it means the folder where this process stands (:mod:`zenconvert.base.surroundings`).
    """
    variables = {**_PATIENT, **os.environ, **_SAFE, **more}
    settle(variables)
    path = [variables["PYTHONPATH"]] if "PYTHONPATH" in variables else []
    if _ROOT.name not in _INSTALLED:
        path.append(str(_ROOT))
    variables.setdefault("PATH", os.defpath)
    return {**variables, "PYTHONPATH": os.pathsep.join(path)}


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
