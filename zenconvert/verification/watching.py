"""Waiting for a process of ours that may hang.

How long a step takes depends on the model and the machine, so no step has a limit. A process is
taken for hung when it tells of no progress and either does nothing at all (it and its children use
no processor time) for a quarter of an hour, or works for six hours and for twenty times as long as
its longest step before. ``$ZENCONVERT_PATIENCE`` is another number of seconds for the former; the
latter grows with it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from zenconvert.errors import UsageError

_PATIENCE: Final = "ZENCONVERT_PATIENCE"
_IDLE_S: Final = 900.0
_BUSY: Final = 24
"""How much longer than an idle process a busy one may be silent."""
_LONGEST: Final = 20
"""How much longer than its longest step before."""
_LOOKS: Final = 60
"""Looks at a process while the patience with an idle one lasts."""
_NOTHING_S: Final = 0.5
"""Processor time that a process uses which only waits."""


class Hung(Exception):
    """The process hangs; the message says how it was told. It has been killed."""


def lines_of(pipe: IO[bytes], pid: int) -> Iterator[bytes]:
    """The lines that a process writes, until it closes the pipe.

    Raises Hung, after killing the process and its children, and UsageError for a patience that is
    no number.
    """
    watch = _Watch(pid, patience())
    rest = b""
    while True:
        if not select.select([pipe], [], [], watch.idle / _LOOKS)[0]:
            if reason := watch.why_hung():
                kill(pid)
                raise Hung(reason)
            continue
        piece = os.read(pipe.fileno(), 1 << 16)
        if not piece:
            return
        watch.progress()
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def patience() -> float:
    """Seconds for which a process may do nothing. Raises UsageError."""
    text = os.environ.get(_PATIENCE, str(_IDLE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{_PATIENCE}={text}: expected a number of seconds above 0")
    return seconds


class _Watch:
    """What is known of a process that is waited for."""

    def __init__(self, pid: int, idle: float) -> None:
        self.pid, self.idle = pid, idle
        self.longest = 0.0
        self.told = time.monotonic()
        self.worked, self.used = self.told, processor_time(pid)

    def progress(self) -> None:
        """It told something."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.told)
        self.told = self.worked = now

    def why_hung(self) -> str:
        """In words, empty where it may well be at work."""
        now, used = time.monotonic(), processor_time(self.pid)
        if used is None or self.used is None or abs(used - self.used) > _NOTHING_S:
            self.worked, self.used = now, used
        if now - self.worked > self.idle:
            return f"it has done nothing for {now - self.worked:.0f} s"
        if now - self.told > max(self.idle * _BUSY, self.longest * _LONGEST):
            return f"it has made no progress for {now - self.told:.0f} s"
        return ""


def family(pid: int) -> dict[int, float]:
    """Process id → seconds of processor time, of a process and all below it; empty where the
    system does not tell."""
    used: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # the name, in brackets, may hold anything
            fields = place.read_text(errors="replace").rpartition(")")[2].split()
            one = int(place.parent.name)
            used[one] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            children.setdefault(int(fields[1]), []).append(one)
    found, left = {}, [pid]
    while left:
        one = left.pop()
        if one in used and one not in found:
            found[one] = used[one]
            left += children.get(one, [])
    return found


def processor_time(pid: int) -> float | None:
    """Seconds that a process and all below it have used, None where the system does not tell."""
    found = family(pid)
    return sum(found.values()) if found else None


def kill(pid: int) -> None:
    """End a process and all below it."""
    for one in {pid, *family(pid)}:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
