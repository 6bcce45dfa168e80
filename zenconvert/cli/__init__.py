"""The command line: every command parses, calls one API function and prints.

This module loads nothing: a Ctrl-C is understood from the first moment, while the rest is loading.
"""

from __future__ import annotations

import errno
import os
import sys

from zenconvert.base.surroundings import LOADED, settle
from zenconvert.cli.signals import Requests
from zenconvert.cli.streams import give_up_on, prepare_streams

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from typing import Any, NoReturn

    import click

EXIT_RESOURCES = 5


def __getattr__(name: str) -> Any:
    if name == "cli":
        from zenconvert.cli.commands import cli

        return cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Entry point. Ends with the exit code of the error's class."""
    prepare_streams()
    _forget_the_working_folder()
    asked = Requests()
    asked.listen()
    try:
        from zenconvert.cli.commands import cli

        asked.end_in_order()
        try:
            cli(standalone_mode=False)
        finally:
            asked.over = True
        sys.stdout.flush()
        give_up_on(sys.stderr)
    except KeyboardInterrupt as interrupt:
        _interrupted(asked, interrupt)
    except Exception as error:
        if asked.first is not None or isinstance(error.__cause__, KeyboardInterrupt):
            _interrupted(asked, error)  # libraries make errors of their own of an interrupt
        _told(error)
        raise


def _interrupted(asked: Requests, error: BaseException) -> NoReturn:
    """End as the signal has it, with what the work noted on its way out."""
    said, code = asked.end
    _end(said + _notes(error) + _notes(error.__cause__), code)  # click puts its own before it


def _notes(error: BaseException | None) -> str:
    return "".join(f"\nnote: {note}" for note in getattr(error, "__notes__", ()))


def _forget_the_working_folder() -> None:
    """The folder that the user stands in is no place to import from, to start programs in or to
    load libraries from: not for this process, nor for those that libraries start."""
    os.environ["PYTHONSAFEPATH"] = "1"
    before = dict(os.environ)
    settle(os.environ)
    if any(os.environ.get(name) != before.get(name) for name in (*LOADED, "LD_LIBRARY_PATH")):
        # the loader of libraries has taken them in already, and asks the folder again each time
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    places = before.get("PYTHONPATH", "").split(os.pathsep)
    if "PYTHONPATH" in before and not all(p.startswith(os.sep) for p in places):
        here = os.getcwd()  # noqa: PTH109  (pathlib is not loaded)
        sys.path[:] = [p for p in sys.path if p != here or p in places]


def _told(error: Exception) -> None:
    """End with the message and exit code of an error that is known; return from any other."""
    import click

    from zenconvert.base.machine import out_of_memory
    from zenconvert.errors import NotEnoughResources, ZenError

    if isinstance(error, click.ClickException):
        _show(error)
    reason = None if isinstance(error, NotEnoughResources) else out_of_memory(error)
    if reason is not None:  # first: it may have been taken for something else
        _end(f"error: not enough memory: {reason}", EXIT_RESOURCES)
    if isinstance(error, ZenError):
        _end(f"error: {error}{_notes(error)}", error.exit_code)
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        _end(  # tempfile's own error, which it has while libraries are loading as well
            f"error: there is no folder for temporary files ({error.strerror}); set TMPDIR to one "
            "that can be written and has room",
            EXIT_RESOURCES,
        )
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EIO, errno.EDQUOT}
    if isinstance(error, OSError) and full and error.filename is None:
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
        give_up_on(stream)
    sys.exit(code)
