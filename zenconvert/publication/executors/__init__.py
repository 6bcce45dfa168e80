"""Executors carry out jobs: here in child processes, or on the machines of a Ray cluster.

Whichever does, the same fresh process does the work (``publication.worker``), with the same number
of threads, so that the bytes are the same. Adding one is adding a row to :data:`EXECUTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from zenconvert.errors import UsageError
from zenconvert.publication.jobs import Failure, Job, Task

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


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


def _local(folder: Path, threads: int) -> Executor:
    from zenconvert.publication.executors.local import LocalExecutor

    return LocalExecutor(folder, threads)


def _ray(folder: Path, threads: int) -> Executor:
    from zenconvert.publication.executors.ray_cluster import RayExecutor

    return RayExecutor(folder, threads)


EXECUTORS: Final[Mapping[str, Callable[[Path, int], Executor]]] = {"local": _local, "ray": _ray}


def executor_named(name: str, folder: Path, threads: int) -> Executor:
    """The executor of a name for a release's folder. Raises UsageError, MissingDependency."""
    if name not in EXECUTORS:
        raise UsageError(f"there is no executor {name!r}; known are {', '.join(EXECUTORS)}")
    return EXECUTORS[name](folder, threads)
