"""The job graph with workers that only write a file: what runs, in which order, and what not."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zenconvert.errors import UsageError
from zenconvert.publication.executors.local import LocalExecutor
from zenconvert.publication.graph import GraphRun, held, undone
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
    key,
)
from zenconvert.publication.ledger import Ledger
from zenconvert.verification.watching import family

TOY = (sys.executable, "-m", "tests.publication.toy_worker")
NAMES = ("A", "B", "C")


def jobs(names: Sequence[str] = NAMES) -> list[Job]:
    """Statistics, from which two variants are made and a third is not; each is verified."""
    statistics = Job(key("gather"), "gather", "statistics")
    found = [statistics]
    first: str | None = None
    for name in names:
        needs = () if name == "C" else (statistics.key,)
        group = "calibrated" if needs else "plain"
        variant = Job(key("variant", name=name), "variant", name, needs=needs, group=group)
        verify = Job(
            key("verify", name=name), "verify", name, needs=(variant.key,), reads=variant.key,
            after=() if first is None else (first,),
        )  # fmt: skip
        first = first or verify.key
        found += [variant, verify]
    return found


def run(
    folder: Path, all_jobs: Sequence[Job] | None = None, cores: int = 2, **orders: Any
) -> list[Event]:
    """Run with a toy worker; gives the events."""
    events: list[Event] = []
    all_jobs = all_jobs or jobs()
    text = json.dumps({"folder": str(folder), **orders})
    executor = LocalExecutor(folder, 1, cores=cores, command=TOY)

    def task(batch: Sequence[Job]) -> Task:
        names = tuple((job.key, job.name) for job in batch)
        return Task(batch[0].kind, names, "recipe.toml", text, reads=batch[0].reads or "")

    with held(folder):
        GraphRun(all_jobs, Ledger(folder), executor, task, events.append).run()
    return events


def told(events: Sequence[Event], kind: type[Event]) -> list[str]:
    """Titles of the jobs of one kind of event, as they came."""
    return [event.job.title for event in events if isinstance(event, kind)]


def ran(folder: Path) -> list[str]:
    """What the workers of all runs were told."""
    return (folder / ".zenconvert" / "ran.txt").read_text().splitlines()


def digest(folder: Path) -> str:
    """Of all files but the state."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and ".zenconvert" not in p.parts)
    lines = [f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
    return "\n".join(lines)


def test_jobs_run_in_order_and_variants_in_one_pass(tmp_path: Path) -> None:
    events = run(tmp_path)
    done = told(events, JobDone)
    assert sorted(done) == sorted(job.title for job in jobs())
    assert done.index("gather statistics") < done.index("make A") < done.index("verify A")
    assert "variant A B" in ran(tmp_path)
    assert told(events, JobProgress).count("gather statistics") == 1
    assert (tmp_path / "variant/A.txt").read_text() == "A with 1 threads\n"
    others = [event.job.title for event in events[: events.index(_started(events, "verify B"))]]
    assert "verify A" in others  # the reference pass of the first serves the others


def _started(events: Sequence[Event], title: str) -> Event:
    return next(e for e in events if isinstance(e, JobStarted) and e.job.title == title)


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    run(tmp_path)
    before = ran(tmp_path)
    events = run(tmp_path)
    assert told(events, JobSkipped) == [job.title for job in jobs()]
    assert ran(tmp_path) == before
    assert undone(jobs(), Ledger(tmp_path)) == []


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        ("missing", ["make A"]),  # its bytes are those that were verified
        ("changed", ["make A"]),
        ("record", ["make A"]),
        ("report", ["verify A"]),
        ("touched", []),
        ("statistics", []),  # they serve nothing that is not done
    ],
)
def test_what_is_no_longer_there_is_done_again(
    tmp_path: Path, damage: str, again: list[str]
) -> None:
    run(tmp_path)
    whole = digest(tmp_path)
    file = tmp_path / "variant/A.txt"
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_text(file.read_text().replace("A", "X"))
    elif damage == "record":
        (tmp_path / ".zenconvert" / f"{key('variant', name='A')}.json").write_text('{"key": 1')
    elif damage == "report":
        (tmp_path / "verify/A.txt").unlink()
    elif damage == "touched":
        file.write_text(file.read_text())
    else:
        (tmp_path / "gather/statistics.txt").unlink()
    events = run(tmp_path)
    redone = [title for title in told(events, JobDone) if not title.startswith("gather")]
    assert redone == again
    if damage != "statistics":
        assert digest(tmp_path) == whole


def test_a_verification_of_other_bytes_is_done_again(tmp_path: Path) -> None:
    run(tmp_path)
    ledger, made = Ledger(tmp_path), key("variant", name="C")
    (tmp_path / "variant/C.txt").write_text("another run made this of the same things\n")
    record = ledger.get(made)
    assert record is not None
    files = ledger.written([tmp_path / "variant/C.txt"])
    ledger.put(type(record)(made, "variant", "C", files))
    assert [job.title for job in undone(jobs(), ledger)] == ["verify C"]


def test_a_failure_takes_only_what_needs_it(tmp_path: Path) -> None:
    events = run(tmp_path, fail=["variant B"])
    failed = {e.job.title: e.failure for e in events if isinstance(e, JobFailed)}
    assert failed == dict.fromkeys(
        ("make B", "verify B"), Failure("NotEnoughResources", "too large")
    )
    assert failed["make B"].exit_code == 5
    assert sorted(told(run(tmp_path), JobDone)) == ["make B", "verify B"]


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        ({"die": ["gather statistics"]}, "by SIGKILL; was there enough memory?"),
        ({"crash": ["gather statistics"]}, "exit code 1: .*RuntimeError: a bug"),
    ],
)
def test_a_worker_that_dies_is_a_failure(
    tmp_path: Path, orders: dict[str, Any], reason: str
) -> None:
    events = run(tmp_path, **orders)
    failures = [e for e in events if isinstance(e, JobFailed)]
    expected = ["gather statistics", "make A", "make B", "verify A", "verify B"]
    assert sorted(e.job.title for e in failures) == expected
    assert all(e.failure.error == "ConversionFailed" for e in failures)
    assert re.search(reason, failures[0].failure.text)
    assert sorted(told(events, JobDone)) == ["make C", "verify C"]


def processes(folder: Path, kind: str) -> list[str]:
    """The processes that did the jobs of a kind."""
    lines = (folder / ".zenconvert" / "processes.txt").read_text().splitlines()
    return [pid for pid, _, done in (line.partition(" ") for line in lines) if done == kind]


def test_one_process_verifies_one_variant_after_another(tmp_path: Path) -> None:
    run(tmp_path, sorted(jobs(), key=lambda job: job.kind == "verify"), cores=1)
    verified = processes(tmp_path, "verify")
    assert len(verified) == 3
    assert len(set(verified)) == 1
    others = processes(tmp_path, "variant") + processes(tmp_path, "gather")
    assert len({*others, *verified}) == len(others) + 1
    assert not any(alive(int(pid)) for pid in verified)
    assert not list((tmp_path / ".zenconvert" / "logs").iterdir())


def test_a_process_that_dies_while_it_verifies_costs_one_row(tmp_path: Path) -> None:
    events = run(tmp_path, cores=1, die=["verify B"])
    assert told(events, JobFailed) == ["verify B"]
    assert {"verify A", "verify C"} <= set(told(events, JobDone))
    assert len(set(processes(tmp_path, "verify"))) == 2
    assert told(run(tmp_path), JobDone) == ["verify B"]


def test_what_needs_no_statistics_is_made_while_they_are_gathered(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, tmp_path, hold=["gather statistics"])
        try:
            while not (tmp_path / "variant/C.txt").exists() and not running.done():
                time.sleep(0.05)
            gathered = (tmp_path / "gather/statistics.txt").exists()
        finally:
            (tmp_path / ".zenconvert" / "go").touch()
        events = running.result()
    assert not gathered
    assert sorted(told(events, JobDone)) == sorted(job.title for job in jobs())


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(UsageError, match="another run"), held(tmp_path):
        pass


def test_keys_are_of_content() -> None:
    assert key("variant", a=1, b=(2, 3)) == key("variant", b=[2, 3], a=1)
    assert len({key("variant", a=1), key("verify", a=1), key("variant", a=2)}) == 3


def test_a_killed_run_leaves_no_worker_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.publication.test_graph", str(tmp_path / "killed")]
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    for number in range(3):
        with subprocess.Popen(command) as process:
            ran_by_now = tmp_path / "killed/.zenconvert/ran.txt"
            while process.poll() is None and not (
                ran_by_now.exists() and len(ran_by_now.read_text().splitlines()) > 2 * number
            ):
                time.sleep(0.05)
            below = set(family(process.pid)) - {process.pid}
            process.send_signal(signal.SIGKILL)
        while any(alive(pid) for pid in below):  # they end by themselves
            time.sleep(0.05)
        with held(tmp_path / "killed"):  # nobody holds it, nor will write into it
            pass
    run(tmp_path / "killed")
    run(tmp_path / "whole")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def alive(pid: int) -> bool:
    """Whether a process still runs; what has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    run(Path(sys.argv[1]), sleep=0.2)
