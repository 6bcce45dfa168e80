"""A job's process, seen from the one that waits for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from zenconvert.base.processes import child_environment, module_command
from zenconvert.publication.executors import Progress
from zenconvert.publication.jobs import Failure, Task
from zenconvert.publication.ledger import STATE

WORKER: Final = tuple(module_command("zenconvert.publication.worker"))
_THREADS: Final = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
)  # fmt: skip
_TAIL: Final = 4
"""Lines of a dead worker's messages that its failure shows."""


class Child:
    """A worker in a session of its own; it dies when this process does."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        threads: int,
        command: Sequence[str] = WORKER,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.task = task
        self.log = folder / STATE / "logs" / f"{task.jobs[0][0]}.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # more threads than cores are no loss as long as none waits in a loop
        numbers = {**dict.fromkeys(_THREADS, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(**numbers, **(environment or {})),
                start_new_session=True,
            )

    def wait(self, progress: Progress) -> dict[str, Failure]:
        """Tell it what to do and wait for its end; gives the jobs that failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        failures: dict[str, Failure] | None = None
        with suppress(BrokenPipeError):  # it died; its exit code says more
            self.process.stdin.write(self.task.as_json().encode() + b"\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            message = json.loads(line)
            if "stage" in message:
                progress(message["stage"], message["done"], message["total"])
            else:
                failures = {k: Failure(**v) for k, v in message["failures"].items()}
        code = self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if code or failures is None:
            return {
                key: Failure("ConversionFailed", self._death(code)) for key, _ in self.task.jobs
            }
        self.log.unlink(missing_ok=True)
        return failures

    def kill(self) -> None:
        """End it, and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _death(self, code: int) -> str:
        how = f"with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            memory = "; was there enough memory?" if name == "SIGKILL" else ""
            how = f"by {name}{memory}"
        with self.log.open(encoding="utf-8", errors="replace") as file:
            said = [line.strip() for line in deque(file, _TAIL) if line.strip()]
        return f"its process ended {how}" + (f": {' | '.join(said)}" if said else "")
