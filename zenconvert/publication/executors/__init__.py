"""Executors carry out jobs: here in child processes, or on the machines of a Ray cluster.

Whichever does, the same fresh process does the work (``publication.worker``), with the same number
of threads, so that the bytes are the same. Adding one is adding a row to :data:`EXECUTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from zenconvert.errors import UsageError
from zenconvert.publication.executors.executor import Executor


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
