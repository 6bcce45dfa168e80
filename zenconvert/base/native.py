"""Calls into libraries that write to the standard error by themselves when they fail."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_TURN = threading.Lock()


class NativeFailure(Exception):
    """A library gave up in its own code; the message is its own."""


@contextmanager
def heard() -> Iterator[None]:
    """Keep what a call writes to the standard error until it is over.

    A panic of Rust code raises NativeFailure and what was written is dropped; it is written after
    any other end. One call at a time: the standard error is one for all threads.
    """
    with _TURN, _place() as kept:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        before = _turned(kept.fileno())
        panicked = False
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # beyond Exception, and of no module
                raise
            panicked = True
            raise NativeFailure(" ".join(str(error).split())[:300]) from None
        finally:
            _back(before)
            if not panicked and before is not None:
                kept.seek(0)
                _pass_on(kept.read())


def _place() -> IO[bytes]:
    """A file that is nowhere; in memory where the system has such, as no folder may be writable."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("heard"), "w+b")
    return tempfile.TemporaryFile()


def _turned(to: int) -> int | None:
    """Another place for file descriptor 2; gives the former, None where there was none."""
    try:
        before = os.dup(2)
        os.dup2(to, 2)
    except OSError:
        return None
    return before


def _back(before: int | None) -> None:
    if before is not None:
        os.dup2(before, 2)
        os.close(before)


def _pass_on(text: bytes) -> None:
    with suppress(OSError):
        while text:
            text = text[os.write(2, text) :]
