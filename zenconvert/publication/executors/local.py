"""Jobs in child processes of this machine, side by side where cores and memory allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

from zenconvert.base.machine import free_ram, usable_cores
from zenconvert.publication.executors import Progress
from zenconvert.publication.executors.child import WORKER, Child
from zenconvert.publication.jobs import Failure, Job, Task


class LocalExecutor:
    """One process a batch; all variants that are ready are one batch, made in one pass."""

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
        """Cores and memory for both, and a GPU for one; a pass over variants takes all cores."""
        if not running:
            return True
        both = [*running, *batch]
        if any(job.kind == "variant" for job in both):
            return False
        gpus = sum(job.device != "cpu" for job in both)
        fits = len(both) * self.threads <= self.cores and sum(j.ram for j in both) <= self.ram
        return fits and gpus <= 1

    def run(self, task: Task, progress: Progress) -> Mapping[str, Failure]:
        """In a process of its own."""
        with self._lock:
            if self._stopped:
                return {key: Failure("ConversionFailed", "stopped") for key, _ in task.jobs}
            child = Child(self.folder, task, self.threads, self.command)
            self._running.add(child)
        try:
            return child.wait(progress)
        finally:
            child.kill()
            with self._lock:
                self._running.discard(child)

    def stop(self) -> None:
        """Kill every process."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.kill()
