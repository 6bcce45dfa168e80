"""Runs jobs in the order of what they need, as many at a time as the executor has room for."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from zenconvert.base.atomic import system_errors
from zenconvert.base.notes import make_folder
from zenconvert.base.progress import Progress
from zenconvert.base.scratch import LOCK, mark, open_scratch
from zenconvert.errors import ConversionFailed, UsageError
from zenconvert.publication.executors.executor import Executor
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

    What reads the outputs of another one waits for it, and is not done again where it then finds
    the same. What others need that are not done is done again where what serves them is gone.
    """
    jobs = list(jobs)
    left: set[str] = set()
    for job in jobs:
        if job.reads in left or not is_done(job, ledger):
            left.add(job.key)
    for job in reversed(jobs):
        for need in job.needs if job.key in left else ():
            record = ledger.get(need)
            if record is None or not ledger.serves(record):
                left.add(need)
    return [job for job in jobs if job.key in left]


def is_done(job: Job, ledger: Ledger) -> bool:
    """Whether the outputs are what the record says, and made from what there is to read now."""
    record = ledger.get(job.key) or ledger.gathered(job.calibration)
    if record is None or not ledger.holds(record):
        return False
    source = ledger.get(job.reads) if job.reads is not None else None
    return job.reads is None or (source is not None and source.digest == record.read)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else works on this release.

    Raises UsageError when somebody does, or when the folder of its state is not ours, and as
    ``system_errors``.
    """
    state = folder / STATE
    make_folder(folder)
    open_scratch(state)
    with system_errors(state):
        lock = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{folder}: another run is working on this release") from error
        mark(state)
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{folder} keeps what is done; the same command goes on from there")
        raise
    finally:
        os.close(lock)


@dataclass
class GraphRun:
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

        Interrupted (KeyboardInterrupt) or done, it leaves no worker.
        """
        waiting = undone(self.jobs, self.ledger)
        for job in self.jobs:
            if job not in waiting:
                self._say(JobSkipped(job))
        for job in waiting:
            if job.reads is None:  # others may find that they are done
                self.ledger.remove(job.key)
        running: dict[Future[None], tuple[Job, ...]] = {}
        with ThreadPoolExecutor(_MOST, thread_name_prefix="job") as pool:
            try:
                while waiting or running:
                    waiting = self._without_settled(waiting, running)
                    for batch in self._startable(waiting, running):
                        running[pool.submit(self._batch, batch)] = batch
                        waiting = [job for job in waiting if job not in batch]
                    finished, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        del running[future]
                        future.result()
            finally:
                self.executor.stop()
        return self.failures

    def _without_settled(
        self, waiting: Sequence[Job], running: Mapping[Future[None], tuple[Job, ...]]
    ) -> list[Job]:
        """What is still to run: jobs that need a failed one fail, some turn out to be done."""
        left: list[Job] = []
        begun = {job.key for batch in running.values() for job in batch}
        for job in waiting:
            lost = next((self.failures[key] for key in job.needs if key in self.failures), None)
            coming = begun | {other.key for other in waiting}
            if lost is not None:
                self._fail(job, lost)
            elif job.reads is not None and job.reads not in coming and is_done(job, self.ledger):
                self._say(JobSkipped(job))
            else:
                left.append(job)
        return left

    def _startable(
        self, waiting: Sequence[Job], running: Mapping[Future[None], tuple[Job, ...]]
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
