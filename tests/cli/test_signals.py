"""Asked to end by Ctrl-C, SIGTERM or SIGHUP: a line, an exit code, nothing unfinished left."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended
from tests.safety.outputs import Case, after, everything, finals, names
from zenconvert.base.processes import child_environment
from zenconvert.publication.executors import executor_named
from zenconvert.verification import native
from zenconvert.write import one_pass
from zenconvert.write.output import Output

ENDS = {
    signal.SIGINT: ("interrupted", 7),
    signal.SIGTERM: ("ended by SIGTERM", 143),
    signal.SIGHUP: ("ended by SIGHUP", 129),
}
each = pytest.mark.parametrize("number", ENDS, ids=lambda number: signal.Signals(number).name)


def press(*numbers: int) -> Callable[[], None]:
    """A function that sends these signals to this process, the first time that it is called."""
    left = iter(numbers)  # several threads write

    def pressing() -> None:
        for number in left:
            os.kill(os.getpid(), number)

    return pressing


@each
def test_a_conversion_ends_in_order(
    number: int,
    case: Case,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after(monkeypatch, "pwrite", 5, press(number))
    code, _, err = ended(*case.command(tmp_path)[3:])
    said, expected = ENDS[signal.Signals(number)]
    assert code == expected
    lines = [line for line in err.splitlines() if not line.endswith("…")]
    after_sign = [""] * (number == signal.SIGINT)
    assert lines == [*after_sign, f"{said}; nothing unfinished stands under the output's name"]
    assert not names(tmp_path)


@each
def test_requests_while_the_unfinished_is_removed(
    number: int,
    case: Case,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shell and the terminal itself both send SIGHUP; systemd sends SIGHUP after SIGTERM."""
    real, again = (
        Output.discard,
        press(signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGINT),
    )

    def discard(output: Output) -> None:
        again()
        real(output)

    after(monkeypatch, "pwrite", 5, press(number))
    monkeypatch.setattr(Output, "discard", discard)
    code, _, err = ended(*case.command(tmp_path)[3:])
    said, expected = ENDS[signal.Signals(number)]
    assert code == expected
    assert said in err
    assert "Traceback" not in err
    assert not names(tmp_path)


THIRD = """
import os, signal, sys
from zenconvert.write.output import Output
count, real, discard = 0, os.pwrite, Output.discard
def pressing(*given):
    global count
    count += 1
    if count == 6:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*given)
def pressed(output):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    discard(output)
os.pwrite, Output.discard = pressing, pressed
from zenconvert.cli import main
sys.argv = sys.argv[1:]
main()
"""


def test_a_third_ctrl_c_ends_at_once(cases: dict[str, Case], tmp_path: Path) -> None:
    """As SIGKILL does, and the next run finds its way."""
    case = cases["parts"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", THIRD, "zenconvert", *case.command(tmp_path)[3:]],
        env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7
    assert "Ctrl-C once more" in done.stderr
    assert "Traceback" not in done.stderr
    assert not finals(tmp_path)
    assert names(tmp_path) == {".out.gguf.partial"}
    case.write(tmp_path)
    assert everything(tmp_path) == case.new


@each
def test_what_was_ignored_stays_ignored(
    number: int,
    cases: dict[str, Case],
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``nohup``, and a shell's ``&``."""
    case = cases["file"]
    signal.signal(number, signal.SIG_IGN)
    after(monkeypatch, "pwrite", 5, press(number))
    assert ended(*case.command(tmp_path)[3:])[0] == 0
    assert everything(tmp_path) == case.new
    assert signal.getsignal(number) == signal.SIG_IGN


@each
def test_what_the_next_run_can_use_is_kept_and_said(
    number: int,
    cases: dict[str, Case],
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = cases["file"]
    with monkeypatch.context() as patch:
        patch.setattr(one_pass, "REMEMBER_SECONDS", 0)
        after(patch, "pwrite", 8, press(number))
        code, _, err = ended(*case.command(tmp_path)[3:], "--threads", "1")
    assert code == ENDS[signal.Signals(number)][1]
    hidden = tmp_path / ".out.gguf.partial"
    assert f"note: {hidden} keeps what is done; the same command goes on there" in err
    assert (hidden / "journal").is_file()
    assert ended(*case.command(tmp_path)[3:])[0] == 0
    assert everything(tmp_path) == case.new


def test_a_statistics_run_says_what_it_keeps(
    tiny: Path, tmp_path: Path, ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, "replace", 2, press(signal.SIGTERM))
    few = ("--languages", "en", "--tokens-per-language", "64", "--context", "32")
    code, _, err = ended("calibrate", tiny, tmp_path / "out", *few)
    assert code == 143
    kept = tmp_path / ".out.partial"
    assert f"note: {kept} keeps what is done; the same command goes on from there" in err
    assert kept.is_dir()
    assert not finals(tmp_path)


def test_a_child_ends_with_its_run(
    tiny: Path, tmp_path: Path, ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("The ferry leaves at nine, and nobody waits for it.")
    children: list[int] = []

    def lines_of(pipe: Any, pid: int) -> Any:
        children.append(pid)
        os.kill(os.getpid(), signal.SIGTERM)
        return itertools.repeat(b"0 1")

    monkeypatch.setattr(native, "lines_of", lines_of)
    code, _, err = ended(
        "verify", tiny, tiny, "--engine", "transformers", "--text", tmp_path / "text",
        "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert code == 143
    assert "ended by SIGTERM" in err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)
    assert names(tmp_path) == {"text"}


@each
def test_asked_while_an_error_is_told(
    number: int, tmp_path: Path, ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is over: the error and its exit code stay."""
    from zenconvert import cli

    real = cli._told

    def told(error: Exception) -> None:
        os.kill(os.getpid(), number)
        real(error)

    monkeypatch.setattr(cli, "_told", told)
    code, _, err = ended("inspect", tmp_path / "nowhere")
    assert code == 4
    assert "error: " in err


def test_ray_does_not_answer_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets a handler of its own as it joins a cluster."""
    ray = pytest.importorskip("ray")

    def init(**given: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    executor_named("ray", tmp_path, 1)
    assert signal.getsignal(signal.SIGTERM) == before
