"""The command line: every command parses, calls one API function and prints.

This module loads nothing: a Ctrl-C is understood from the first moment, while the rest is loading.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn, TextIO

    import click

EXIT_RESOURCES = 5
EXIT_INTERRUPTED = 7
_INTERRUPTED = "interrupted; nothing unfinished stands under the output's name"


def __getattr__(name: str) -> Any:
    if name == "cli":
        from zenconvert.cli.commands import cli

        return cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Entry point. Ends with the exit code of the error's class."""
    _open_what_is_closed()
    _forget_the_working_folder()
    pressed = _Pressed()
    signal.signal(signal.SIGINT, pressed.early)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what an encoding lacks is written as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        from zenconvert.cli.commands import cli

        signal.signal(signal.SIGINT, pressed.late)
        cli(standalone_mode=False)
        sys.stdout.flush()
        _give_up_on(sys.stderr)
    except KeyboardInterrupt:
        _end(_INTERRUPTED, EXIT_INTERRUPTED)
    except Exception as error:
        if pressed.count:  # libraries make errors of their own of an interrupt
            _end(_INTERRUPTED, EXIT_INTERRUPTED)
        _told(error)
        raise


def _forget_the_working_folder() -> None:
    """The folder that the user stands in is no place to import from or to start programs in: not
    for this process, nor for those that libraries start."""
    os.environ["PYTHONSAFEPATH"] = "1"
    for name in ("PATH", "PYTHONPATH"):
        if given := os.environ.get(name):
            places = given.split(os.pathsep)
            os.environ[name] = os.pathsep.join(p for p in places if p.startswith(os.sep))
            if name == "PYTHONPATH" and not all(p.startswith(os.sep) for p in places):
                here = os.getcwd()  # noqa: PTH109  (pathlib is not loaded)
                sys.path[:] = [p for p in sys.path if p != here or p in places]


def _open_what_is_closed() -> None:
    """Give every standard stream that is closed to nobody: what is opened next would take its
    place, and be written to by whoever prints."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "r+", closefd=False))  # noqa: SIM115


class _Pressed:
    """Counts Ctrl-C."""

    def __init__(self) -> None:
        self.count = 0

    def early(self, number: int, frame: FrameType | None) -> None:
        """Nothing has begun: end at once, whatever is being loaded."""
        os.write(2, f"{_INTERRUPTED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    def late(self, number: int, frame: FrameType | None) -> None:
        """End in order."""
        self.count += 1
        raise KeyboardInterrupt


def _told(error: Exception) -> None:
    """End with the message and exit code of an error that is known; return from any other."""
    import click

    from zenconvert.base.machine import out_of_memory
    from zenconvert.errors import NotEnoughResources, ZenError

    if isinstance(error, click.exceptions.Abort):
        _end(_INTERRUPTED, EXIT_INTERRUPTED)
    if isinstance(error, click.ClickException):
        _show(error)
    reason = None if isinstance(error, NotEnoughResources) else out_of_memory(error)
    if reason is not None:  # first: it may have been taken for something else
        _end(f"error: not enough memory: {reason}", EXIT_RESOURCES)
    if isinstance(error, ZenError):
        notes = "".join(f"\nnote: {note}" for note in getattr(error, "__notes__", ()))
        _end(f"error: {error}{notes}", error.exit_code)
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        _end(  # tempfile's own error, which it has while libraries are loading as well
            f"error: there is no folder for temporary files ({error.strerror}); set TMPDIR to one "
            "that can be written and has room",
            EXIT_RESOURCES,
        )
    if isinstance(error, OSError) and error.filename is None:
        if error.errno == errno.EPIPE:
            _end("", 1)
        if error.errno in {errno.ENOSPC, errno.EIO, errno.EDQUOT}:
            _end(f"error: the output cannot be printed: {error.strerror}", EXIT_RESOURCES)


def _show(error: click.ClickException) -> NoReturn:
    from zenconvert.base.escaping import plain

    vars(error)["message"] = plain(error.message)
    error.show(sys.stderr)
    _end("", error.exit_code)


def _end(text: str, code: int) -> NoReturn:
    """Say something on standard error and end; what standard output cannot take is left."""
    from zenconvert.base.escaping import plain

    try:
        if text:
            sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()
        sys.stdout.flush()
    except OSError:
        pass
    for stream in (sys.stdout, sys.stderr):
        _give_up_on(stream)
    sys.exit(code)


def _give_up_on(stream: TextIO) -> None:
    """Let go of what a stream cannot take: the interpreter would try again, and end with 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
