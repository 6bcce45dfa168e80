"""Waiting for processes that may hang."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from zenconvert.errors import UsageError
from zenconvert.verification.watching import Hung, family, kill, lines_of, patience, processor_time

PATIENT = "600"


def child(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE)


def lines(process: subprocess.Popen[bytes]) -> list[bytes]:
    assert process.stdout is not None
    with process.stdout as pipe:
        return list(lines_of(pipe, process.pid))


def test_lines_come_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENCONVERT_PATIENCE", PATIENT)
    process = child(
        "import sys, time\n"
        "for part in ('a 1', ' 2\\nb\\n', 'c\\n'): sys.stdout.write(part); time.sleep(0.1)"
    )
    assert lines(process) == [b"a 1 2", b"b", b"c"]
    assert process.wait() == 0


def test_one_that_does_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it started."""
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "1")
    process = child(
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(10000)'])\n"
        "time.sleep(10000)"
    )
    with pytest.raises(Hung, match="done nothing"):
        lines(process)
    assert process.wait() < 0
    assert set(family(process.pid)) <= {process.pid}


def test_one_that_works_without_a_word_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "10")
    process = child(
        "import time\nbegin = time.process_time()\nwhile time.process_time() < begin + 5: pass\n"
        "print('done')"
    )
    assert lines(process) == [b"done"]
    assert process.wait() == 0


def test_one_that_works_for_ever_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "20")
    monkeypatch.setattr("zenconvert.verification.watching._BUSY", 0.2)
    process = child("while True: pass")
    with pytest.raises(Hung, match="made no progress"):
        lines(process)
    assert process.wait() < 0


def test_processor_time_counts_the_children() -> None:
    process = child(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'while True: pass'])"
    )
    while (processor_time(process.pid) or 0) < 1:
        time.sleep(0.05)
    assert len(family(process.pid)) == 2
    kill(process.pid)
    assert process.wait() < 0


@pytest.mark.parametrize("value", ["soon", "0", "-3", "inf", "nan", ""])
def test_patience_is_a_number_of_seconds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZENCONVERT_PATIENCE", value)
    with pytest.raises(UsageError, match="expected a number of seconds"):
        patience()
