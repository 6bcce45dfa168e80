"""Jobs on the machines of a Ray cluster: one task a job, begun again elsewhere when its node dies.

The release's folder, the source and the recipe must be on a disk that all nodes share, under the
same paths, and zenconvert be installed on each. What a reference pass leaves for the next variant
is kept below the release's folder, so that one pass serves all nodes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.base.progress import Progress
from zenconvert.errors import MissingDependency, UsageError
from zenconvert.publication.executors.child import WORKER, Child
from zenconvert.publication.jobs import Failure, Job, Task
from zenconvert.publication.ledger import STATE

if TYPE_CHECKING:
    from ray import ObjectRef

_RETRIES: Final = 5
"""How often a task may lose its node."""
_CACHE: Final = "ZENCONVERT_CACHE"


class RayExecutor:
    """Tasks of the cluster at ``$RAY_ADDRESS``, or of the one that this machine belongs to."""

    def __init__(self, folder: Path, threads: int, *, command: Sequence[str] = WORKER) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependency(
                "the ray executor needs Ray; install zenconvert[ray]"
            ) from error
        if not ray.is_initialized():
            try:
                # workers import first of all from where this process stands when it joins
                with chdir("/"), _answers_kept():
                    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise UsageError(
                    "there is no Ray cluster here: start one with `ray start --head`, or name one "
                    "in RAY_ADDRESS"
                ) from error
        self.ray, self.folder, self.threads, self.command = ray, folder, threads, tuple(command)
        cache = Path(os.environ.get(_CACHE) or folder / STATE / "cache")
        self.environment = {_CACHE: str(cache.absolute())}  # nodes stand elsewhere
        self._running: set[ObjectRef[Any]] = set()

    def batches(self, ready: Sequence[Job]) -> list[tuple[Job, ...]]:
        """Every job by itself: its node is the cluster's to choose."""
        return [(job,) for job in ready]

    def has_room(self, running: Sequence[Job], batch: Sequence[Job]) -> bool:
        """Always: what the cluster has no room for waits there."""
        return True

    def run(self, task: Task, progress: Progress) -> Mapping[str, Failure]:
        """As a task of the cluster."""
        job = task.jobs[0][0]
        remote = self.ray.remote(carry_out).options(
            name=f"{task.kind} {task.jobs[0][1]}",
            num_cpus=self.threads,
            num_gpus=1 if task.device != "cpu" else 0,
            max_retries=_RETRIES,
        )
        reference = remote.remote(
            str(self.folder), task.as_json(), self.threads, self.command, self.environment
        )
        self._running.add(reference)
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            return {job: Failure("ConversionFailed", f"the Ray task was lost: {reason}")}
        finally:
            self._running.discard(reference)
        return {key: Failure(**value) for key, value in found.items()}

    def stop(self) -> None:
        """Cancel every task; their processes end with them."""
        for reference in list(self._running):
            self.ray.cancel(reference, force=True)


@contextmanager
def _answers_kept() -> Iterator[None]:
    """Ray answers SIGTERM by ending at once: what the process does about it stays as it was."""
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)


def carry_out(
    folder: str, task: str, threads: int, command: Sequence[str], environment: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """What runs on a node: the same child process that the local executor has."""
    child = Child(Path(folder), threads, command, environment)
    try:
        failures = child.perform(Task.from_json(task), lambda stage, done, total: None)
    finally:
        child.end()
    return {key: asdict(failure) for key, failure in failures.items()}
