"""Long stages say how far they are: lines with rate and time left in a log, bars on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from zenconvert.cli import cli, printing

Family = Callable[[str], Path]
TEXT = [
    {"language": code, "text": text * 12}
    for code, text in (("en", "The cat sat on the mat. "), ("de", "Die Katze saß auf der Matte. "))
]
LINE = re.compile(
    r"^(.+): (\d+)%(?:, ([\d.]+ [kM]?/s|[\d.]+[kMGT ]*/s|[\d.e+-]+ s each), (.+) left)?$"
)
WORKS = ("calibrate", "convert", "verify")


class Clock:
    """Goes on by as much as it is told, whenever somebody looks."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0)
    monkeypatch.setattr(printing, "time", clock)
    return clock


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_as_a_stage_begins_and_two_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with printing.stages() as progress:
        for done in range(101):
            progress("reading", done, 100)
            clock.now += 7
    assert told(capsys)[:3] == [
        "reading …",
        "reading: 5%, 7 s each, 11 min 5 s left",
        "reading: 10%, 7 s each, 10 min 30 s left",
    ]


def test_the_rate_is_that_of_this_run(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """What an interrupted run had done already says nothing about the speed."""
    with printing.stages() as progress:
        progress("layers", 60, 100)
        clock.now += 40
        progress("layers", 80, 100)
        clock.now += 40
        progress("layers", 80.5, 100)
    assert told(capsys) == [
        "layers …", "layers: 80%, 2 s each, 40 s left", "layers: 80%, 3.9 s each, 1 min 16 s left"
    ]  # fmt: skip


def test_nothing_done_yet_has_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with printing.stages() as progress:
        progress("layers", 0, 10)
        clock.now += 40
        progress("layers", 0, 10)
    assert told(capsys) == ["layers …", "layers: 0%"]


def test_json_is_alone() -> None:
    with printing.stages(quiet=True) as progress:
        progress("layers", 0, 10)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.02, "50 s each"), (3.14159, "3.14/s"), (12_000, "12 k/s"), (4e9, "4 G/s")],
)
def test_speeds(rate: float, words: str) -> None:
    assert printing.speed(rate) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert printing.duration(seconds) == words


def arguments(work: str, source: Path, folder: Path) -> list[str]:
    """A command that has long stages."""
    text = folder / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, TEXT)))
    few = ["--samples", str(text), "--context", "32", "--device", "cpu"]
    return {
        "calibrate": ["calibrate", str(source), str(folder / "a.stats"), "--for", "gptq", *few],
        "convert": [
            "convert", str(source), str(folder / "out"), "--to", "gptq:w4g128", "--calibrate", *few
        ],
        "verify": [
            "verify", str(source), str(source), "--text", str(text), "--context", "32",
            "--device", "cpu",
        ],
    }[work]  # fmt: skip


STAGES = {
    "calibrate": {"calibrating"},
    "convert": {"gptq", "writing"},
    "verify": {"reference", "candidate", "scoring", "noise floor"},
}


@pytest.mark.parametrize("work", WORKS)
def test_commands_in_a_log(
    work: str, model: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a log would see it where every step takes half a minute."""
    monkeypatch.setattr(printing, "_LINE_S", 0.0)
    monkeypatch.setenv("ZENCONVERT_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(cli, arguments(work, model("qwen2"), tmp_path))
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    begun = {line.removesuffix(" …") for line in lines if line.endswith(" …")}
    assert STAGES[work] <= begun
    went_on = [found for line in lines if (found := LINE.match(line))]
    assert {found[1] for found in went_on} <= begun
    assert any(found[3] and found[4] for found in went_on), lines
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("work", WORKS)
def test_commands_on_a_terminal(
    work: str, model: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(ours, 1 << 16):
                shown.extend(piece)

    reader = Thread(target=read)
    reader.start()
    for name, value in (
        ("ZENCONVERT_CACHE", str(tmp_path / "cache")), ("TERM", "xterm"), ("COLUMNS", "120")
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        cli(arguments(work, model("qwen2"), tmp_path), standalone_mode=False)
    reader.join()
    os.close(ours)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    for stage in STAGES[work]:
        assert re.search(rf"{stage} .*100%", plain), plain
    assert re.search(r"\d+% +\S.*(/s|s each) +\d+:\d\d:\d\d", plain), plain
