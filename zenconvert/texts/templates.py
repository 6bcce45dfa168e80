"""Chat templates rendered in a process of their own.

A template comes with the model and is a program: it may loop for ever or want all memory. The
process (``template_child.py``) has jinja2's sandbox, limits, no folder of the user on its import
path, and is started again when a template has ended it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from zenconvert.base.processes import start

CHILD: Final = Path(__file__).with_name("template_child.py")
SECONDS: Final = 1.5
"""Processor time that a text may take."""
MEMORY: Final = 256 * 1024 * 1024
"""Bytes that rendering may take beyond what an idle process has."""
_WAIT: Final = 120.0
"""Seconds on the clock, where the system does not measure processor time."""


class TemplateFailed(Exception):
    """A template gave no text; the message says why."""


def render_template(template: str, values: Mapping[str, Any]) -> str:
    """The text of a template over JSON values. Raises TemplateFailed."""
    text = _process(os.getpid()).render(template, values)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TemplateFailed(f"it gives no text: {error.reason}") from error
    return text


class _Process:
    """One child, started when it is needed."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        request = json.dumps({"template": template, "values": values}).encode() + b"\n"
        with self.lock:
            line = self._ask(request)
        reply = json.loads(line)
        if "error" in reply:
            raise TemplateFailed(reply["error"])
        return str(reply["text"])

    def _ask(self, request: bytes) -> bytes:
        child = self.child
        if child is None or child.poll() is not None:
            child = self.child = _start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], _WAIT)
            line = child.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        except BaseException:  # an answer that nobody reads would be the next request's
            self.stop()
            raise
        if line.endswith(b"\n"):
            return line
        self.stop()
        raise TemplateFailed(f"it takes more than {SECONDS:g} s, or ends the process it runs in")

    def stop(self) -> None:
        """End the child, if there is one."""
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


@cache
def _process(pid: int) -> _Process:
    """Of this process: after a fork, parent and child have one each."""
    del pid
    return _Process()


def _start() -> subprocess.Popen[bytes]:
    import jinja2
    import markupsafe

    folders = {str(Path(m.__file__ or "").parents[1]) for m in (jinja2, markupsafe)}
    return start(
        [sys.executable, "-I", str(CHILD), str(SECONDS), str(MEMORY), *sorted(folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
