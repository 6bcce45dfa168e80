"""Jobs on a real Ray cluster of two nodes, one of which dies at work."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.publication.test_graph import TOY, alive, digest, jobs, ran, run, told
from zenconvert.base.processes import child_environment
from zenconvert.errors import UsageError
from zenconvert.publication.executors import executor_named
from zenconvert.publication.executors.ray_cluster import RayExecutor
from zenconvert.publication.graph import GraphRun
from zenconvert.publication.jobs import Event, Job, JobDone, JobFailed, Task
from zenconvert.publication.ledger import Ledger
from zenconvert.verification.watching import family

ROOT = Path(__file__).parent.parent.parent
NOTICES_THE_DEAD = {  # a dead node refuses at once; one that is merely busy has time to answer
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 120_000,
    "health_check_failure_threshold": 5,
    "worker_register_timeout_seconds": 600,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        made = started()
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.CRITICAL)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def started() -> Any:
    """A cluster that has come up. Ray gives a node half a minute for that, and its agents half of
    it where they choose their ports, without a setting for either; on a busy machine it is tried
    again."""
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    alone = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    before = set(family(os.getpid()))
    for left in reversed(range(30)):
        first = {**small, **ports(), **alone, "_system_config": NOTICES_THE_DEAD}
        try:
            made: Any = Cluster(initialize_head=True, head_node_args=first)
            made.worker = made.add_node(**small, **ports())
        except Exception:  # Ray raises plain ones
            if not left:
                raise
            for pid in set(family(os.getpid())) - before:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            return made
    raise AssertionError


def ports() -> dict[str, int]:
    """Free ones for the agents of a node."""
    names = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with ExitStack() as held:
        free = [held.enter_context(socket.create_server(("", 0))) for _ in names]
        return {name: one.getsockname()[1] for name, one in zip(names, free, strict=True)}


def run_on(folder: Path, events: list[Event], **orders: Any) -> None:
    """Run the jobs of the toy on the cluster."""
    text = json.dumps({"folder": str(folder), **orders})
    executor = RayExecutor(folder, 1, command=TOY)

    def task(batch: Sequence[Job]) -> Task:
        names = tuple((job.key, job.name) for job in batch)
        return Task(batch[0].kind, names, "recipe.toml", text, reads=batch[0].reads or "")

    Ledger(folder).state.mkdir()
    GraphRun(jobs(), Ledger(folder), executor, task, events.append).run()


def busy_node(cluster: Any, state: Path) -> tuple[Any, str, int] | None:
    """The second node where it holds A or B (there are two, and one core a node), which of them,
    and in which process."""
    raylet = cluster.worker.all_processes["raylet"][0].process.pid
    for name in "AB":
        if (told := state / f"variant {name} on {raylet}").exists():
            return cluster.worker, name, int(told.read_text())
    return None


def test_the_death_of_a_node_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    for place in ("ray", "local"):
        (tmp_path / place).mkdir()
    events: list[Event] = []
    orders = {"hold": ["variant A", "variant B"]}
    work = threading.Thread(target=run_on, args=(tmp_path / "ray", events), kwargs=orders)
    work.start()
    while (found := busy_node(cluster, tmp_path / "ray/.zenconvert")) is None:
        assert work.is_alive(), "no node but the first one makes a variant"
        time.sleep(0.05)
    node, name, process = found
    cluster.remove_node(node, allow_graceful=False)
    while alive(process):  # it ends by itself, and must not see that it may go on
        time.sleep(0.05)
    (tmp_path / "ray/.zenconvert/go").touch()
    work.join()
    assert told(events, JobFailed) == []
    assert sorted(told(events, JobDone)) == sorted(job.title for job in jobs())
    lines = ran(tmp_path / "ray")
    assert lines.count(f"variant {name}") >= 2  # what died with the node ran again
    assert "variant A B" not in lines  # each by itself
    run(tmp_path / "local")
    assert digest(tmp_path / "ray") == digest(tmp_path / "local")


def test_failures_come_back(cluster: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    run_on(tmp_path, events, fail=["variant B"], die=["variant C"])
    failed = {e.job.title: e.failure.text for e in events if isinstance(e, JobFailed)}
    assert failed["make B"] == failed["verify B"] == "too large"
    assert failed["make C"].startswith("its process ended by SIGKILL")
    assert sorted(told(events, JobDone)) == ["gather statistics", "make A", "verify A"]


def test_nodes_share_one_cache(cluster: Any, tmp_path: Path) -> None:
    assert executor_named("ray", tmp_path, 1).environment == {  # type: ignore[attr-defined]
        "ZENCONVERT_CACHE": os.environ["ZENCONVERT_CACHE"]
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZENCONVERT_CACHE")
        shared = RayExecutor(tmp_path, 1).environment["ZENCONVERT_CACHE"]
        assert shared == str(tmp_path / ".zenconvert/cache")


WHERE_WORKERS_LOOK = """
import json, sys
from pathlib import Path
from zenconvert.publication.executors.ray_cluster import RayExecutor

ray = RayExecutor(Path(sys.argv[1]), 1).ray
print(json.dumps(ray.get(ray.remote(lambda: sys.path).remote())))
"""


def test_workers_import_nothing_from_where_the_command_is_given(
    cluster: Any, tmp_path: Path
) -> None:
    """Ray would put that folder before all others."""
    (tmp_path / "json.py").write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", WHERE_WORKERS_LOOK, str(tmp_path)],
        env=child_environment(RAY_ADDRESS=cluster.address), cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    looked = json.loads(done.stdout.splitlines()[-1])
    assert str(tmp_path) not in looked
    assert not {"", "."} & set(looked)


def test_unknown_executors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known are local, ray"):
        executor_named("slurm", tmp_path, 1)
