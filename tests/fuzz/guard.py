"""What a reader may not do while it looks at hostile input, watched while it runs.

An audit hook sees files that are opened for writing outside the input's folder, processes, sockets,
pickles and code from the input. Time is that of the processor, so that a busy machine changes
nothing; memory is the peak of resident pages since the input was opened.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from zenconvert.errors import ZenError

MEMORY: Final = 300 << 20
"""Bytes beyond the start."""
_FILLING: Final = 0.01
"""Seconds of the processor: nothing fills that much memory in less. Asking takes as long as many
an input."""
LONGEST_MESSAGE: Final = 20_000
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ALTERING: Final = frozenset(
    {
        "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
        "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
    }
)  # fmt: skip
_FORBIDDEN: Final = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.",
    "pickle.", "urllib.", "webbrowser.",
)  # fmt: skip
_ROOMS: Final = ("zenconvert", "formats", "calib")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a reader did that it may not."""

    kind: str
    """The exception's name, ``slow``, ``memory``, ``message`` or the forbidden event."""
    place: str
    """``file:line`` of ours where it arose."""
    text: str


class TooSlow(BaseException):
    """Nothing catches it by accident."""


class _Watch:
    """The state that the hook, which can never be taken away again, looks at."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self.installed = False
        self.peak = 0


_watch: Final = _Watch()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _watch.folder
    if folder is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITES and not _is_inside(path, folder):
            _watch.seen.append(f"open for writing {path!r}")
    elif event in _ALTERING:
        if not _is_inside(arguments[0], folder):
            _watch.seen.append(f"{event} {arguments[0]!r}")
    elif event == "exec":
        code = arguments[0]
        if isinstance(code, CodeType) and code.co_filename.startswith(folder):
            _watch.seen.append(f"exec {code.co_filename}")
    elif event.startswith(_FORBIDDEN):
        _watch.seen.append(event)


def _is_inside(path: object, folder: str) -> bool:
    if isinstance(path, int):
        return True
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return name.startswith(folder) or name == os.devnull or "__pycache__" in name


def run(
    read: Callable[[Path], object], folder: Path, *, seconds: float, start: int
) -> Fault | None:
    """Read the input of a folder; None where the reader kept to the contract.

    ``start`` are the resident bytes that memory is counted from.
    """
    if not _watch.installed:
        sys.addaudithook(_hook)
        signal.signal(signal.SIGPROF, _late)
        _watch.installed = True
    _watch.seen.clear()
    fault: Fault | None = None
    began = time.process_time()
    _watch.folder = str(folder)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        read(folder)
    except ZenError as error:
        fault = _of_message(error)
    except TooSlow as error:
        fault = _of_error(error, "slow")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = _of_error(error, type(error).__name__)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _watch.folder = None
    if fault is None and _watch.seen:
        fault = Fault(_watch.seen[0].split()[0], "", "; ".join(_watch.seen)[:500])
    if time.process_time() - began > _FILLING:
        fault = fault or _of_memory(start)
    return fault


def _of_memory(start: int) -> Fault | None:
    """A peak beyond what is right that the last input has raised."""
    before, _watch.peak = _watch.peak, _peak()
    if _watch.peak <= max(before, start + MEMORY):
        return None
    fault = Fault("memory", "", f"{(_watch.peak - start) >> 20} MiB")
    _watch.peak = forget_peak()
    return fault


def _late(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def _peak() -> int:
    """Peak of resident bytes of this process since :func:`forget_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak() -> int:
    """Count the peak from what is resident now, which is returned."""
    with Path("/proc/self/clear_refs").open("w") as file:
        file.write("5")
    return _peak()


def _of_message(error: ZenError) -> Fault | None:
    """A message has to be told to somebody."""
    text = str(error)
    if len(text) > LONGEST_MESSAGE:
        return Fault("message", place_of(error), f"{len(text)} characters: {text[:200]!r}")
    return None


def _of_error(error: BaseException, kind: str) -> Fault:
    return Fault(kind, place_of(error), f"{type(error).__name__}: {error}"[:500])


def place_of(error: BaseException) -> str:
    """The innermost line of ours, and the line below it where that is not ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if any(f"/{room}/" in f.filename for room in _ROOMS)
        and "/site-packages/" not in f.filename
        and "/tests/" not in f.filename
    ]
    if not ours:
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    name = ours[-1].filename
    begin = max(name.rfind(f"/{room}/") for room in _ROOMS)
    return f"{name[begin + 1 :]}:{ours[-1].lineno}"
