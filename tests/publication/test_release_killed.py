"""A release killed or interrupted just before a file gets its name, and the next run: the bytes of
an undisturbed one, no half file, and nothing touched that is somebody else's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.publication.test_release import write
from tests.safety.outputs import Files, everything, finals
from zenconvert import release
from zenconvert.base.progress import Progress
from zenconvert.publication.job_bodies import perform
from zenconvert.publication.jobs import Failure, Job, Task

RECIPE = """
[source]
path = "SOURCE"
name = "tiny"
[output]
folder = "release"
[[variant]]
target = "gguf:q8_0"
engines = []
[[variant]]
target = "hf:f16"
engines = []
"""
MOMENTS = [
    ("kill", "tiny-Q8_0.gguf"), ("kill", "variant"), ("kill", "SHA256SUMS"), ("interrupt", "HF-f16")
]  # fmt: skip
"""Files and folders that do not get their names; ``variant`` is a record."""
WEIGHTS = (".gguf", ".safetensors")


class Here:
    """Carries out jobs in this process."""

    def batches(self, ready: Sequence[Job]) -> list[tuple[Job, ...]]:
        return [tuple(ready)]

    def has_room(self, running: Sequence[Job], batch: Sequence[Job]) -> bool:
        return not running

    def run(self, task: Task, progress: Progress) -> Mapping[str, Failure]:
        return perform(task, progress)

    def stop(self) -> None:
        pass


def run(recipe: Path, moment: str, how: str) -> int:
    """Run in a fork that stops before a file gets its name; gives how the fork ended."""
    child = os.fork()
    if child == 0:
        code = 1

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in {"os.rename", "os.link"} and _is_at(Path(str(arguments[1])), moment):
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt

        try:
            sys.addaudithook(hook)
            named = mock.patch("zenconvert.publication.release_run.executor_named", _here)
            with named, mock.patch("os.fsync"):
                code = release(recipe).exit_code
        except KeyboardInterrupt:
            code = 7
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _here(*_: object) -> Here:
    return Here()


def _is_at(path: Path, moment: str) -> bool:
    if moment == "variant":
        return path.parent.name == ".zenconvert" and path.suffix == ".json"
    return path.name == moment


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    """A process of its own to fork from, for this one may have threads; what takes long to import
    is imported once."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, import_module, ("numba",)) as pool:
        yield pool


Do = Callable[[Path, str, str], int]


@pytest.fixture(scope="module")
def do(process: Executor) -> Do:
    return lambda recipe, moment, how: process.submit(run, recipe, moment, how).result()


@pytest.fixture(scope="module")
def good(do: Do, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a run leaves that nothing disturbs."""
    place = tmp_path_factory.mktemp("good")
    assert do(write(place, tiny, RECIPE), "", "") == 0
    return _named(place / "release")


@pytest.fixture(scope="module")
def tiny(model: Callable[[str], Path]) -> Path:
    return model("qwen2")


def _named(folder: Path) -> Files:
    """All but marks, whose names are drawn; receipts, which name their place, without bytes."""
    found = everything(folder)
    return {
        name: "" if "/receipts/" in name else digest
        for name, digest in found.items()
        if not name.startswith(".zenconvert/zenconvert-")
    }


@pytest.mark.parametrize(("how", "moment"), MOMENTS)
def test_stopped_before_a_name_is_given(
    how: str, moment: str, do: Do, good: Files, tiny: Path, tmp_path: Path
) -> None:
    recipe, folder = write(tmp_path, tiny, RECIPE), tmp_path / "release"
    foreign = tmp_path / ".release.0123456789abcdef.partial"
    foreign.write_bytes(b"mine")
    before = everything(tmp_path)
    assert do(recipe, moment, how) == (-signal.SIGKILL if how == "kill" else 7)
    named = {name: digest for name, digest in finals(folder).items() if "/." not in name}
    assert all(named[name] == good[name] for name in named if name.endswith(WEIGHTS))
    inside = folder / ".notes.0123456789abcdef.partial"  # somebody's, for evidence has other names
    inside.write_bytes(b"mine")
    assert do(recipe, "", "") == 0
    assert inside.read_bytes() == b"mine"
    inside.unlink()
    assert _named(folder) == good
    after = everything(tmp_path)
    assert {name: after[name] for name in before} == before
