"""The process of jobs, seen from the one that waits for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from zenconvert.base.processes import module_command, signal_name, start
from zenconvert.base.progress import Progress
from zenconvert.publication.executors.job_log import JobLog
from zenconvert.publication.jobs import Failure, Task
from zenconvert.publication.ledger import STATE

WORKER: Final = tuple(module_command("zenconvert.publication.worker"))
_THREADS: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
)  # fmt: skip
_TAIL: Final = 4
"""Lines of a dead worker's messages that its failure shows."""


class Child:
    """A worker in a session of its own, for one task after another; it dies when this process
    does."""

    def __init__(
        self,
        folder: Path,
        threads: int,
        command: Sequence[str] = WORKER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # more threads than cores are no loss as long as none waits in a loop
        numbers = {**dict.fromkeys(_THREADS, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = start(
            command,
            {**numbers, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.log = JobLog(folder / STATE / "logs", self.process.stderr)

    def perform(self, task: Task, progress: Progress) -> dict[str, Failure]:
        """Tell it what to do and wait for the end of that; gives the jobs that failed.

        What it says meanwhile is kept in the log of the first job where it dies.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.log.begin()
        with suppress(BrokenPipeError):  # it died; its exit code says more
            self.process.stdin.write(task.as_json().encode() + b"\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            message = json.loads(line)
            if "stage" in message:
                progress(message["stage"], message["done"], message["total"])
            else:
                return {key: Failure(**value) for key, value in message["failures"].items()}
        death = self._death(self.process.wait())
        self.log.keep(f"{task.jobs[0][0]}.txt")
        return {key: Failure("ConversionFailed", death) for key, _ in task.jobs}

    def is_alive(self) -> bool:
        """Whether it can take a task."""
        return self.process.poll() is None

    def end(self) -> None:
        """End it, and everything that it started."""
        died = not self.is_alive()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if not died:
            self.log.remove()

    def _death(self, code: int) -> str:
        how = f"with exit code {code}"
        if code < 0:
            name = signal_name(-code)
            memory = "; was there enough memory?" if name == "SIGKILL" else ""
            how = f"by {name}{memory}"
        said = self.log.last_lines(_TAIL)
        return f"its process ended {how}" + (f": {' | '.join(said)}" if said else "")
