"""Runs jobs in the order of what they need, as many at a time as the executor has room for."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from zenconvert.errors import ConversionFailed, UsageError
from zenconvert.publication.executors import Executor, Progress
from zenconvert.publication.jobs import (
    Event,
    Failure,
    Job,
    JobDone,
    JobFailed,
    JobProgress,
    JobSkipped,
    JobStarted,
    Task,
)
from zenconvert.publication.ledger import STATE, Ledger

Tell = Callable[[Event], None]
_MOST: Final = 256
"""Batches at a time."""


def undone(jobs: Iterable[Job], ledger: Ledger) -> list[Job]:
    """The jobs that have to run, in their order.

    A job is done when its outputs are what its record says, and were made from what the job that it
    reads has now; and, where others that are not done need it, when what serves them is there.
    """
    jobs = list(jobs)
    left: set[str] = set()
    for job in jobs:
        record = ledger.get(job.key)
        fresh = record is not None and ledger.holds(record)
        if job.reads is not None and record is not None:
            source = ledger.get(job.reads)
            fresh &= job.reads not in left and source is not None and source.digest == record.read
        if not fresh:
            left.add(job.key)
    for job in reversed(jobs):
        for need in job.needs if job.key in left else ():
            record = ledger.get(need)
            if record is None or not ledger.serves(record):
                left.add(need)
    return [job for job in jobs if job.key in left]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else works on this release. Raises UsageError when somebody does."""
    state = folder / STATE
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{folder}: another run is working on this release") from error
        yield


@dataclass
class Run:
    """One run of a graph."""

    jobs: Sequence[Job]
    ledger: Ledger
    executor: Executor
    task_of: Callable[[Sequence[Job]], Task]
    """Tells what a worker is to do for a batch."""
    tell: Tell
    failures: dict[str, Failure] = field(default_factory=dict)
    """Key → why it failed, or what it needs did."""
    _lock: Lock = field(default_factory=Lock)

    def run(self) -> dict[str, Failure]:
        """Run what is not done; a job that fails takes only those with it that need it.

        Interrupted (KeyboardInterrupt), it ends all workers first.
        """
        waiting = undone(self.jobs, self.ledger)
        for job in self.jobs:
            if job not in waiting:
                self._say(JobSkipped(job))
        for job in waiting:
            self.ledger.remove(job.key)
        running: dict[Future[None], tuple[Job, ...]] = {}
        with ThreadPoolExecutor(_MOST, thread_name_prefix="job") as pool:
            try:
                while waiting or running:
                    waiting = self._without_hopeless(waiting)
                    for batch in self._startable(waiting, running):
                        running[pool.submit(self._batch, batch)] = batch
                        waiting = [job for job in waiting if job not in batch]
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        del running[future]
                        future.result()
            except BaseException:
                self.executor.stop()
                raise
        return self.failures

    def _without_hopeless(self, waiting: Sequence[Job]) -> list[Job]:
        """What may still run; jobs that need a failed one fail."""
        left = []
        for job in waiting:
            lost = next((self.failures[key] for key in job.needs if key in self.failures), None)
            if lost is None:
                left.append(job)
            else:
                self._fail(job, lost)
        return left

    def _startable(
        self, waiting: Sequence[Job], running: dict[Future[None], tuple[Job, ...]]
    ) -> Iterator[tuple[Job, ...]]:
        active = [job for batch in running.values() for job in batch]
        open_keys = {job.key for job in (*waiting, *active)}
        ready = [job for job in waiting if not open_keys & {*job.needs, *job.after}]
        for batch in self.executor.batches(ready):
            if self.executor.has_room(active, batch):
                active += batch
                yield batch

    def _batch(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self._say(JobStarted(job))
        begun = time.monotonic()
        failures = self.executor.run(self.task_of(batch), self._progress(batch))
        for job in batch:
            if (failure := failures.get(job.key)) is not None:
                self._fail(job, failure)
            elif self.ledger.get(job.key) is None:
                text = "its process left no record; is the release's folder on a shared disk?"
                self._fail(job, Failure(ConversionFailed.__name__, text))
            else:
                self._say(JobDone(job, time.monotonic() - begun))

    def _progress(self, batch: Sequence[Job]) -> Progress:
        return lambda stage, done, total: self._say(JobProgress(batch[0], stage, done, total))

    def _fail(self, job: Job, failure: Failure) -> None:
        self.failures[job.key] = failure
        self._say(JobFailed(job, failure))

    def _say(self, event: Event) -> None:
        with self._lock:
            self.tell(event)
