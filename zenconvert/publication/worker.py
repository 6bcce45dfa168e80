"""The process that jobs run in: ``python -m zenconvert.publication.worker``.

Standard input brings tasks, one line each, and stays open as long as whoever waits is alive: at its
end this process kills itself and its children, so that nothing goes on writing that nobody waits
for. Standard output carries JSON lines: progress, and the failures at the end of each task. What
libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, NoReturn

from zenconvert.base.machine import memory_errors
from zenconvert.errors import ZenError
from zenconvert.publication.jobs import Failure, Task

Perform = Callable[[Task, Callable[[str, int, int], None]], Mapping[str, Failure]]
"""Carries out a task; gives the jobs that failed."""

_INTERVAL_S: Final = 0.2  # between two messages of one stage


def serve(perform: Perform) -> NoReturn:
    """Carry out the tasks that come in, until this process is ended."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_receive, args=(tasks,), daemon=True).start()
    lock = Lock()

    def send(message: Mapping[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    while True:
        failures = _carried_out(perform, Task.from_json(tasks.get().decode()), send)
        gc.collect()  # files and memory of this task
        send({"failures": {key: asdict(failure) for key, failure in failures.items()}})


def _carried_out(
    perform: Perform, task: Task, send: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Failure]:
    try:
        with memory_errors(", ".join(name for _, name in task.jobs)):
            return perform(task, _Throttled(send))
    except ZenError as error:
        return {key: Failure.of(error) for key, _ in task.jobs}


class _Throttled:
    """Sends progress, not more often than people can read."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.send, self.stage, self.at = send, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done >= total or now - self.at > _INTERVAL_S:
            self.stage, self.at = stage, now
            self.send({"stage": stage, "done": done, "total": total})


def _receive(tasks: SimpleQueue[bytes]) -> None:
    """Take in tasks; the end of standard input is the end of this process."""
    rest = b""
    while piece := os.read(0, 1 << 16):  # not sys.stdin, whose lock the interpreter wants
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            tasks.put(line)
    leads = os.getpgrp() == os.getpid()
    (os.killpg if leads else os.kill)(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from zenconvert.publication.job_bodies import perform

    serve(perform)
