"""Standard streams that bear what may happen to them.

This module loads nothing.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from typing import Any, TextIO

_NAMES = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """Open what is closed, write what an encoding lacks as an escape, and take it calmly when
    nobody reads on: work goes on to its end and has its own exit code, whenever ``head`` left."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:  # what is opened next would take its place, and be printed into
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "r+", closefd=False))  # noqa: SIM115
    for name in _NAMES[1:]:
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        if isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # unbuffered where -u wants it
            setattr(sys, name, _patient(stream, buffered=hasattr(buffer, "raw")))


class _Patient(io.FileIO):
    """A file that takes what nobody reads any more."""

    def write(self, data: Any, /) -> int:
        """As written, when the other end of a pipe is closed."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def _patient(stream: TextIO, *, buffered: bool) -> TextIO:
    stream.flush()
    raw = _Patient(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw,  # as -u has it
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def give_up_on(stream: TextIO) -> None:
    """Let go of what a stream cannot take: the interpreter would try again, and end with 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
