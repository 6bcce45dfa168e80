"""Jobs in child processes of this machine, side by side where cores and memory allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Final

from zenconvert.base.machine import free_ram, usable_cores
from zenconvert.base.progress import Progress
from zenconvert.publication.executors.child import WORKER, Child
from zenconvert.publication.jobs import Failure, Job, Task

_LASTING: Final = ("verify",)
"""Kinds of jobs whose process takes the next one, too."""


class LocalExecutor:
    """One process a batch; all variants that are ready are one batch, made in one pass.

    The process of a verification takes the next one as well: starting it, with torch and
    transformers, takes as long as a small model's figures.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        *,
        cores: int | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.folder, self.threads, self.command = folder, threads, command
        self.cores, self.ram = cores or usable_cores(), free_ram()
        self._running: set[Child] = set()
        self._idle: list[Child] = []
        self._stopped = False
        self._lock = Lock()

    def batches(self, ready: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Variants together, everything else by itself."""
        together: dict[str, list[Job]] = {}
        for job in ready:
            group = job.group if job.kind == "variant" else job.key
            together.setdefault(group, []).append(job)
        return [tuple(jobs) for jobs in together.values()]

    def has_room(self, running: Sequence[Job], batch: Sequence[Job]) -> bool:
        """Cores and memory for both, and a GPU for one; one pass over variants at a time, which
        takes what cores are idle."""
        if not running:
            return True
        both = [*running, *batch]
        passes = sum(any(job.kind == "variant" for job in jobs) for jobs in (running, batch))
        processes = sum(job.kind != "variant" for job in both) + passes
        gpus = sum(job.device != "cpu" for job in both)
        fits = processes * self.threads <= self.cores and sum(j.ram for j in both) <= self.ram
        return fits and gpus <= 1 and passes <= 1

    def run(self, task: Task, progress: Progress) -> Mapping[str, Failure]:
        """In a process that does nothing else meanwhile."""
        with self._lock:
            if self._stopped:
                return {key: Failure("ConversionFailed", "stopped") for key, _ in task.jobs}
            child = self._child(task)
            self._running.add(child)
        whole = False
        try:
            failures = child.perform(task, progress)
            whole = child.is_alive()
            return failures
        finally:
            with self._lock:
                self._running.discard(child)
                if whole and task.kind in _LASTING and not self._stopped:
                    self._idle.append(child)
                else:
                    child.end()

    def _child(self, task: Task) -> Child:
        """An idle one that is alive for what one may take over; none is idle beside other work."""
        while self._idle:
            child = self._idle.pop()
            if task.kind in _LASTING and child.is_alive():
                return child
            child.end()
        return Child(self.folder, self.threads, self.command)

    def stop(self) -> None:
        """Kill every process."""
        with self._lock:
            self._stopped = True
            for child in (*self._running, *self._idle):
                child.end()
