"""What carries out jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from zenconvert.base.progress import Progress
from zenconvert.publication.jobs import Failure, Job, Task


class Executor(Protocol):
    """Carries out batches of jobs; ``run`` is called from several threads at a time."""

    def batches(self, ready: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Jobs that are ready, put together as one process should do them."""
        ...

    def has_room(self, running: Sequence[Job], batch: Sequence[Job]) -> bool:
        """Whether a batch may run beside what runs."""
        ...

    def run(self, task: Task, progress: Progress) -> Mapping[str, Failure]:
        """Carry out a task and wait for it; gives the jobs that failed by their keys."""
        ...

    def stop(self) -> None:
        """End everything that runs; ``run`` then returns soon."""
        ...
