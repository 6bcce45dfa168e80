"""The process that a job runs in: ``python -m zenconvert.publication.worker``.

Standard input brings one line, the task, and then stays open as long as whoever waits is alive: at
its end this process kills itself and its children, so that nothing goes on writing that nobody
waits for. Standard output carries JSON lines: progress, and at the end the failures. What libraries
print goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from threading import Lock, Thread
from typing import Any, Final

from zenconvert.base.machine import memory_errors
from zenconvert.errors import ZenError
from zenconvert.publication.jobs import Failure, Task

Perform = Callable[[Task, Callable[[str, int, int], None]], Mapping[str, Failure]]
"""Carries out a task; gives the jobs that failed."""

_INTERVAL_S: Final = 0.2  # between two messages of one stage


def serve(perform: Perform) -> None:
    """Carry out the task that comes in."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = Task.from_json(sys.stdin.readline())
    Thread(target=_die_with_parent, daemon=True).start()
    lock = Lock()

    def send(message: Mapping[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    try:
        with memory_errors(", ".join(name for _, name in task.jobs)):
            failures = perform(task, _Throttled(send))
    except ZenError as error:
        failures = {key: Failure.of(error) for key, _ in task.jobs}
    send({"failures": {key: asdict(failure) for key, failure in failures.items()}})


class _Throttled:
    """Sends progress, not more often than people can read."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.send, self.stage, self.at = send, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done >= total or now - self.at > _INTERVAL_S:
            self.stage, self.at = stage, now
            self.send({"stage": stage, "done": done, "total": total})


def _die_with_parent() -> None:
    """Wait for the end of standard input."""
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    leads = os.getpgrp() == os.getpid()
    (os.killpg if leads else os.kill)(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from zenconvert.publication.job_bodies import perform

    serve(perform)
