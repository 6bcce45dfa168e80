"""A run that stopped, whose working folder was damaged meanwhile, and then the next run: the bytes
of a run that nothing disturbed, or one error of ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.safety.outputs import everything
from zenconvert import calibrate, convert
from zenconvert.calib import statistics_file, workspace
from zenconvert.errors import ZenError
from zenconvert.publication.ledger import Ledger, Record
from zenconvert.solve.calibration_texts import Calibrating

Run = Callable[[Path, Path], object]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def _link(path: Path) -> None:
    target = path.parent.parent / "target"
    target.write_bytes(path.read_bytes()[::-1])
    path.unlink()
    path.symlink_to(target)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _swap(path: Path) -> None:
    """Another file's bytes."""
    others = [p for p in path.parent.iterdir() if p.is_file() and p != path]
    path.write_bytes(max(others, key=lambda p: p.stat().st_size).read_bytes())


FEW = Calibrating(languages=("en",), tokens_per_language=64, context=32)
DAMAGES = (_cut, _flip, _zeros, _empty, _deep, _link, _folder, _fifo, _swap)
RUNS: dict[str, tuple[str, int, int, Run]] = {
    "statistics": (
        ".out.partial", 14, 3,
        lambda source, out: calibrate(
            source, out, languages=["en"], tokens_per_language=64, context=32
        ),
    ),
    "awq": (
        ".out.solving", 7, 9,
        lambda source, out: convert(source, out, "awq:w4g64", calibrating=FEW),
    ),
    "gptq": (
        ".out.solving", 7, 9,
        lambda source, out: convert(source, out, "gptq:w4g32", calibrating=FEW),
    ),
    "importance": (
        ".out.gathered", 6, 3,
        lambda source, out: convert(source, out, "gguf:q4_0", calibrating=FEW),
    ),
}  # fmt: skip
"""Where it works, at which of its files it stops, and how many files share every damage."""


class Stopped(Exception):
    """Ends a run as a kill would."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the ``number``-th file that gets its name be the last."""
    left, real = number, os.replace

    def replace(*given: object, **more: object) -> None:
        nonlocal left
        real(*given, **more)  # type: ignore[arg-type]
        left -= 1
        if left == 0:
            raise Stopped

    monkeypatch.setattr(os, "replace", replace)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save hidden states after every layer."""
    torch.set_num_threads(1)
    hasty = partial(workspace.open_workspace, save_seconds=0)
    for module in (workspace, statistics_file):
        monkeypatch.setattr(module, "open_workspace", hasty)
    monkeypatch.setattr(statistics_file, "SAVE_SECONDS", 0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", RUNS)
def test_damaged_files_of_a_stopped_run(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, last, shared, run = RUNS[kind]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    run(tiny, whole / "out")
    expected = everything(whole)
    for number in range(last, 2, -1):
        with monkeypatch.context() as patch:
            stop_at(patch, number)
            try:
                run(tiny, stopped / "out")
            except Stopped:
                if not (stopped / "out").exists() and (stopped / work).is_dir():
                    break
        shutil.rmtree(stopped)
        stopped.mkdir()
    kept = sorted(p for p in (stopped / work).rglob("*") if p.is_file() and p.stat().st_size)
    assert len(kept) > 2, kept
    same = runs = 0
    for number, file in enumerate(kept):
        for damage in DAMAGES[number % shared :: shared]:
            runs += 1
            place = tmp_path / "place"
            shutil.copytree(stopped, place, symlinks=True)
            damage(place / file.relative_to(stopped))
            refused = ""
            try:
                run(tiny, place / "out")
            except ZenError as error:
                refused = str(error)
            found = {k: v for k, v in everything(place).items() if k in expected}
            where = f"{damage.__name__} {file.name}: {refused}"
            assert found == ({} if refused else expected), where
            assert not refused or str(place) in refused, where
            same += not refused
            shutil.rmtree(place)
    assert same > runs // 2


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_ledger_says_nothing(damage: Callable[[Path], None], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for key in ("a" * 40, "b" * 40):
        ledger.put(Record(key, "variant", "x" if key[0] == "a" else "longer name", ()))
    damage(ledger.state / f"{'a' * 40}.json")
    assert [record.key for record in ledger.all()] == ["b" * 40]
