"""A worker whose jobs take no time: ``python -m tests.publication.toy_worker``.

Every job writes one file and its record. The recipe's text is a JSON object that says otherwise:
``fail`` lists jobs that fail, ``die`` jobs whose process dies, ``hold`` jobs that wait for a file
``go`` in the state's folder, ``sleep`` how long each takes, and ``folder`` where the release is.
The state's ``ran.txt`` tells what was done, its ``processes.txt`` by which process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from zenconvert.base.atomic import write_whole
from zenconvert.publication.jobs import Failure, Task
from zenconvert.publication.ledger import Ledger, Record
from zenconvert.publication.worker import serve


def perform(task: Task, progress: Callable[[str, int, int], None]) -> dict[str, Failure]:
    """Write what the jobs are to write."""
    orders = json.loads(task.text)
    ledger = Ledger(Path(orders["folder"]))
    failures = {}
    with (ledger.state / "ran.txt").open("a") as ran:
        ran.write(f"{task.kind} {' '.join(name for _, name in task.jobs)}\n")
    with (ledger.state / "processes.txt").open("a") as processes:
        processes.write(f"{os.getpid()} {task.kind}\n")
    if (node := os.environ.get("RAY_RAYLET_PID")) is not None:
        told = ledger.state / f"{task.kind} {task.jobs[0][1]} on {node}"
        write_whole(told, str(os.getpid()).encode())
    for number, (key, name) in enumerate(task.jobs, 1):
        print("noise that a library makes")
        title = f"{task.kind} {name}"
        if title in orders.get("die", ()):
            os.kill(os.getpid(), signal.SIGKILL)
        if title in orders.get("crash", ()):
            raise RuntimeError("a bug")
        time.sleep(orders.get("sleep", 0))
        while title in orders.get("hold", ()) and not (ledger.state / "go").exists():
            time.sleep(0.05)
        if title in orders.get("fail", ()):
            failures[key] = Failure("NotEnoughResources", "too large")
            continue
        file = ledger.folder / task.kind / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        threads = os.environ["OMP_NUM_THREADS"]
        file.write_text(f"{name} with {threads} threads\n")
        source = ledger.get(task.reads)
        read = "" if source is None else source.digest
        if task.kind == "gather":  # it only serves others
            size = file.stat().st_size
            scratch = {file.relative_to(ledger.folder).as_posix(): size}
            ledger.put(Record(key, task.kind, name, (), scratch=scratch))
        else:
            ledger.put(Record(key, task.kind, name, ledger.written([file]), read))
        progress(title, number, len(task.jobs))
    return failures


if __name__ == "__main__":
    serve(perform)
