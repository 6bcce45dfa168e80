"""What stands on the disk when a conversion is killed or interrupted, and after the next one."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from tests.safety.outputs import Case, Files, after, everything, finals, fresh, names
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert
from zenconvert.cli import main
from zenconvert.errors import OutputExists

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}
Stop = Callable[[], object]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def stopped_at(number: int, folder: Path, work: Callable[[], object], stop: Stop = kill) -> bool:
    """Do ``work`` in a process that stops just before its n-th change of the directories.

    ``open`` counts below ``folder`` only. False when there is no such change.
    """
    child = os.fork()
    if child == 0:
        left, code = number, 1

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in CHANGES:
                return
            if event == "open" and not str(arguments[0]).startswith(str(folder)):
                return
            left -= 1
            if left == -1:
                stop()

        try:
            sys.addaudithook(hook)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 2
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 2, -signal.SIGKILL}
    return status != 0


class Death(NamedTuple):
    """What stands there after a killed run, after the next one, and after one with ``--force``."""

    found: Files
    refused: bool
    """Whether the next run found an output and left it alone."""
    kept: Files
    repaired: Files


class Disturbance(NamedTuple):
    """Runs of ``case`` in ``folder`` that are stopped, one before each of their changes.

    They replace an old output or find none. ``plain`` is a file system that can neither exchange
    two names nor give a file a second one. ``following`` are the runs after the stopped one.
    """

    case: Case
    following: Case
    folder: Path
    replacing: bool
    plain: bool = False

    def deaths(self) -> list[Death]:
        """Kill a run before each change; run twice afterwards."""
        with self._file_system():
            return [self._death() for _ in self._stopped_runs(kill)]

    def interruptions(self) -> list[Files]:
        """Interrupt a run before each change; what stands there afterwards."""
        with self._file_system():
            return [everything(self.folder) for _ in self._stopped_runs(interrupt)]

    def second_deaths(self) -> list[Death]:
        """Kill a run while its parts get their names, and the next one before each change."""
        found: list[Death] = []
        with self._file_system():
            middle = next(
                n for n, _ in enumerate(self._stopped_runs(kill)) if self._is_half_named()
            )
            number = 0
            while True:
                self._prepare()
                assert stopped_at(middle, self.folder, self._run)
                if not stopped_at(number, self.folder, self._next_run):
                    return found
                found.append(self._death())
                number += 1

    def _is_half_named(self) -> bool:
        named = finals(self.folder).items() & self.case.new.items()
        return 1 < len(named) < len(self.case.new)

    def _prepare(self) -> None:
        fresh(self.folder)
        if self.replacing:
            self.case.write_old(self.folder)

    def _run(self) -> None:
        self.case.write(self.folder, force=self.replacing)

    def _next_run(self) -> bool:
        """True when it was refused."""
        try:
            self.following.write(self.folder)
        except OutputExists:
            return True
        return False

    def _stopped_runs(self, stop: Stop) -> Iterator[None]:
        number = 0
        self._prepare()
        while stopped_at(number, self.folder, self._run, stop):
            yield
            number += 1
            self._prepare()

    def _death(self) -> Death:
        found = finals(self.folder)
        refused = self._next_run()
        kept = everything(self.folder)
        self.following.write(self.folder, force=True)
        return Death(found, refused, kept, everything(self.folder))

    def _file_system(self) -> ExitStack:
        patches = ExitStack()
        # slow, and nothing to a process that dies while the system lives
        patches.enter_context(mock.patch("os.fsync"))
        if self.plain:
            unsupported = PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            patches.enter_context(mock.patch("os.link", side_effect=unsupported))
            patches.enter_context(
                mock.patch("zenconvert.write.naming.exchange", return_value=False)
            )
        return patches


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    """A process of its own to fork from, for this one may have threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


plain_or_not = pytest.mark.parametrize("plain", [False, True], ids=["linux", "plain"])


@plain_or_not
def test_killed_before_every_change(
    case: Case, plain: bool, tmp_path: Path, process: Executor
) -> None:
    disturbance = Disturbance(case, case, tmp_path / "place", replacing=False, plain=plain)
    deaths = process.submit(disturbance.deaths).result()
    assert len(deaths) > 8
    for number, death in enumerate(deaths):
        whole = death.found == case.new
        assert whole or case.is_harmless(death.found), f"change {number}"
        # parts under their names that nothing shows to be ours
        foreign = plain and not whole and bool(death.found)
        assert death.refused == (whole or foreign), f"change {number}"
        assert foreign or death.kept == case.new, f"change {number}"
        assert death.repaired == case.new, f"change {number}"


@plain_or_not
def test_killed_before_every_change_while_replacing(
    case: Case, plain: bool, tmp_path: Path, process: Executor
) -> None:
    """Only parts, and folders where two cannot be exchanged, are without their names for a moment;
    the next run gives them back, though it is refused."""
    disturbance = Disturbance(case, case, tmp_path / "place", replacing=True, plain=plain)
    deaths = process.submit(disturbance.deaths).result()
    assert len(deaths) > 8
    in_one_step = len(case.new) == 1 or (not plain and case.out == "out")
    for number, death in enumerate(deaths):
        whole = death.found in (case.old, case.new)
        assert whole or (not in_one_step and case.is_harmless(death.found)), f"change {number}"
        assert death.refused, f"change {number}"
        assert death.kept in (case.old, case.new), f"change {number}"
        assert death.repaired == case.new, f"change {number}"


def test_killed_while_undoing_what_a_killed_run_left(
    cases: dict[str, Case], tmp_path: Path, process: Executor
) -> None:
    case = cases["parts"]
    disturbance = Disturbance(case, case, tmp_path / "place", replacing=True)
    deaths = process.submit(disturbance.second_deaths).result()
    assert len(deaths) > 8
    for number, death in enumerate(deaths):
        whole = death.found in (case.old, case.new)
        assert whole or case.is_harmless(death.found), f"change {number}"
        assert death.kept in (case.old, case.new), f"change {number}"
        assert death.repaired == case.new, f"change {number}"


def test_what_a_run_with_other_options_left_goes_too(
    cases: dict[str, Case], tmp_path: Path, process: Executor
) -> None:
    parts, file = cases["parts"], cases["file"]
    disturbance = Disturbance(parts, file, tmp_path / "place", replacing=False)
    deaths = process.submit(disturbance.deaths).result()
    for number, death in enumerate(deaths):
        before = death.found if death.found == parts.new else {}
        assert death.kept == death.repaired == {**before, **file.new}, f"change {number}"


@pytest.mark.parametrize("replacing", [False, True], ids=["fresh", "replacing"])
def test_interrupted_before_every_change(
    case: Case, replacing: bool, tmp_path: Path, process: Executor
) -> None:
    """Nothing is left to the next run."""
    disturbance = Disturbance(case, case, tmp_path / "place", replacing)
    found = process.submit(disturbance.interruptions).result()
    assert len(found) > 8
    before = case.old if replacing else {}
    assert found[0] == before
    assert found[-1] == case.new
    assert all(files in (before, case.new) for files in found)


def test_ctrl_c(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    presses = iter([signal.SIGINT])  # several threads write, and a second one stops the cleaning up

    def press() -> None:
        for number in presses:
            os.kill(os.getpid(), number)

    after(monkeypatch, "pwrite", 5, press)
    monkeypatch.setattr(sys, "argv", case.command(tmp_path)[2:])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 7
    assert "Traceback" not in capsys.readouterr().err
    assert not names(tmp_path)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 50 MB: its conversion takes a part of a second."""
    folder = tmp_path_factory.mktemp("models") / "big"
    folder.mkdir()
    return raw_model(
        folder, "llama3", vocab_size=MAKERS["llama3"](folder), bos_token_id=1, eos_token_id=2,
        hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_hidden_layers=2,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "target"), [("out.gguf", "gguf:q4_k_m"), ("out", "hf:f16")])
def test_killed_at_a_random_moment(name: str, target: str, big: Path, tmp_path: Path) -> None:
    """The real command, killed by its clock; every run finds what the one before it left."""
    good, place = fresh(tmp_path / "good"), fresh(tmp_path / "place")
    convert(big, good / name, target)  # loads the kernels before time is taken
    expected = everything(good)
    begin = time.monotonic()
    convert(big, good / name, target, force=True)
    total = time.monotonic() - begin
    command = [sys.executable, "-m", "zenconvert", "convert", str(big), str(place / name)]
    dice, ends = random.Random(20), []
    for number in range(3):
        with subprocess.Popen([*command, "--to", target], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (place / f".{name}.partial").exists():
                time.sleep(0.001)
            # the first one at once: whatever the machine is busy with, it cannot have ended yet
            time.sleep(total * (number + dice.random()) / 3 if number else 0)
            process.kill()
        ends.append(process.returncode)
        found = finals(place)
        assert found in ({}, expected)
        if found:
            fresh(place)
    assert -signal.SIGKILL in ends
    convert(big, place / name, target)
    assert everything(place) == expected
    assert names(place) == {name}
