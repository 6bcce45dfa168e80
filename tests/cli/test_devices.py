"""``--device``: what is taken is said first, by every command that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from zenconvert.base import machine
from zenconvert.cli.commands import cli
from zenconvert.errors import UsageError

Family = Callable[[str], Path]
HAVE = {
    "calibrate": ("zenconvert.solve.calibration.calibrate", ["calibrate", "SRC", "OUT"]),
    "convert": (
        "zenconvert.conversion.convert",
        ["convert", "SRC", "OUT", "--to", "gptq:w4g128", "--calibrate"],
    ),
    "verify": ("zenconvert.verification.measurement.verify", ["verify", "SRC", "SRC"]),
    "tasks": (
        "zenconvert.verification.tasks.compare_tasks",
        ["tasks", "SRC", "SRC", "--tasks", "x"],
    ),
}
RECIPE = """
[source]
path = "builtin:zen-nano"
[output]
folder = "release"
[[variant]]
target = "gguf:q8_0"
"""


class Stopped(Exception):
    """The work would begin here."""


def taken(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *more: str) -> Any:
    """Run a command until its work begins; gives what click saw, and the device of the work."""
    function, arguments = HAVE[name]
    devices: list[str] = []

    def work(*args: Any, **given: Any) -> None:
        devices.append(given["device"])
        raise Stopped

    monkeypatch.setattr(function, work)
    places = {"SRC": "builtin:zen-nano", "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(cli, [*(places.get(a, a) for a in arguments), *more])
    return done, devices


def test_every_command_that_has_it_is_tried_here() -> None:
    found = set()
    for name, command in cli.commands.items():
        below = command.commands.values() if isinstance(command, click.Group) else [command]
        if any("--device" in one.opts for each in below for one in each.params):
            found.add(name)
    assert found == set(HAVE)


@pytest.mark.parametrize("name", HAVE)
def test_auto_says_what_it_took(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, devices = taken(name, monkeypatch, tmp_path)
    assert isinstance(done.exception, Stopped), done.output
    gpu = torch.cuda.is_available()
    line = "device: cuda (the GPU that torch sees)" if gpu else "device: cpu (torch sees no GPU)"
    assert done.stderr.splitlines()[0] == line
    assert devices == ["cuda" if gpu else "cpu"]


@pytest.mark.parametrize("name", HAVE)
def test_a_gpu_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "auto_device", lambda: "cuda")
    done, devices = taken(name, monkeypatch, tmp_path)
    assert done.stderr.splitlines()[0] == "device: cuda (the GPU that torch sees)"
    assert devices == ["cuda"]


@pytest.mark.parametrize("name", HAVE)
def test_one_that_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, devices = taken(name, monkeypatch, tmp_path, "--device", "cpu")
    assert (done.stderr.splitlines()[0], devices) == ("device: cpu", ["cpu"])
    done, devices = taken(name, monkeypatch, tmp_path, "--device", "abacus")
    assert isinstance(done.exception, UsageError)
    assert "torch cannot use the device 'abacus'" in str(done.exception)
    assert devices == []


def test_a_device_for_which_there_is_no_work_is_told(tmp_path: Path) -> None:
    arguments = ["convert", "builtin:zen-nano", str(tmp_path / "out.gguf"), "--to", "gguf:f16"]
    done = CliRunner().invoke(cli, [*arguments, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "device: --device had no use" in done.stderr
    done = CliRunner().invoke(cli, [*arguments, "--force"])
    assert "device" not in done.stderr


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("", "device: AUTO for calibration, AUTO for verification"),
        ('[run]\ndevice = "cpu"\n', "device: cpu for calibration, cpu for verification"),
        ('[verify]\ndevice = "cpu"\n', "device: AUTO for calibration, cpu for verification"),
    ],
)
def test_a_release_says_which_it_takes(
    table: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any, **given: Any) -> None:
        raise Stopped

    monkeypatch.setattr("zenconvert.publication.release_run.release", run)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + table)
    done = CliRunner().invoke(cli, ["release", str(recipe)])
    assert isinstance(done.exception, Stopped), done.output
    assert done.stderr.splitlines()[0] == line.replace("AUTO", machine.auto_device())


def test_plan_reads_headers_alone_and_has_none() -> None:
    done = CliRunner().invoke(
        cli, ["plan", "builtin:zen-nano", "--to", "gguf:f16", "--device", "cpu"]
    )
    assert done.exit_code == 2
    assert "--device" in done.output
