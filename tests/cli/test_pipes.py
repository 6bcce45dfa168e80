"""Standard output that nobody reads to its end, as of ``| head -1``: no message, no other exit
code, whenever the reader left."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Ended
from tests.fuzz import reports
from zenconvert.base.processes import child_environment
from zenconvert.verification.gate import Check, Outcome, Verdict


def test_a_process_whose_reader_left(tiny: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-P", "-m", "zenconvert", "inspect"]
    for source, code in ((str(tiny), 0), ("nowhere", 4)):
        done = subprocess.run(
            [*command, source], stdout=write, stderr=subprocess.PIPE, env=child_environment(),
            check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert (not done.stderr) == (code == 0)
    done = subprocess.run(
        [*command, "nowhere"], stdout=write, stderr=write, env=child_environment(), check=False
    )
    os.close(write)
    assert done.returncode == 4


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(write, "w")))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield
    stream.close()


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "SOURCE"), ("diff", "SOURCE", "SOURCE"), ("release", "--help"), ("--version",),
        ("--help",), ("plan", "SOURCE", "--to", "gguf:q4_0", "--explain"),
        ("plan", "SOURCE", "--to", "gguf:q4_0", "--json"),
        ("convert", "SOURCE", "out.gguf", "--to", "gguf:f16", "--json"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_whose_reader_left(
    words: tuple[str, ...],
    tiny: Path,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ended(*(tiny if word == "SOURCE" else word for word in words))
    assert code == 0
    assert "error" not in err
    assert (tmp_path / "out.gguf").exists() == (words[0] == "convert")


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("outcome", Outcome)
def test_a_verdict_whose_reader_left(
    outcome: Outcome,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "r.json").write_bytes(reports.report_bytes())
    check = Check("torch", "en", "kl.mean", outcome, "why")
    verdict = Verdict("p", "0" * 64, "t", (check,))
    monkeypatch.setattr("zenconvert.verification.gate.gate", lambda *_, **more: verdict)
    assert ended("gate", tmp_path / "r.json")[0] == verdict.exit_code
