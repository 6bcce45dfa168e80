"""Every option and argument of every command, as the parser has them: a value of control characters
comes back only escaped, and never ends in a traceback; and none replaces a file of the source."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest

from tests.cli.conftest import Ended
from tests.fuzz import reports
from tests.safety.outputs import everything
from tests.safety.test_streams import EVIL, OBEYED
from zenconvert.cli.commands import cli
from zenconvert.cli.printing import hearing_warnings
from zenconvert.errors import UsageError

EVIL_NAME: Final = EVIL.replace("\r", "")[:40]
VALUES: Final = (EVIL, f"a={EVIL}", f"/nowhere/{EVIL}", f"gguf:{EVIL}")
BASE: Final[dict[str, tuple[str, ...]]] = {
    "inspect": ("SOURCE",),
    "plan": ("SOURCE", "--to", "gguf:f16"),
    "convert": ("SOURCE", "out.gguf", "--to", "gguf:f16", "--force"),
    "calibrate": ("SOURCE", "out.stats", "--force"),
    "verify": ("SOURCE", "SOURCE"),
    "tasks": ("SOURCE", "SOURCE", "--tasks", "x"),
    "gate": ("r.json",),
    "compare": ("r.json",),
    "diff": ("SOURCE", "SOURCE"),
    "doctor": ("--engine", "torch"),
    "release run": ("recipe.toml", "--dry-run"),
    "release verify": ("folder",),
    "release skypilot": ("recipe.toml", "out.yaml", "--volume", "v"),
}
"""What every command is given beside the value that is tried."""


def commands(command: click.Command = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, by its words."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, f"{path} {name}".strip())
    else:
        yield path, command


def lines(path: str, command: click.Command, value: str) -> Iterator[tuple[str, ...]]:
    """Command lines that have a value in the place of every parameter."""
    base = BASE[path]
    for number, argument in enumerate(p for p in command.params if isinstance(p, click.Argument)):
        assert argument.nargs in {1, -1}
        yield (*base[:number], value, *base[number + 1 :])
    for option in command.params:
        if isinstance(option, click.Option):
            name = option.opts[-1]
            yield (*base, f"{name}={value}") if option.is_flag else (*base, name, value)


@pytest.fixture
def place(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[tuple[str, ...]], list[str]]:
    """A folder with what the base of every command names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_bytes(reports.report_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "recipe.toml").write_text(
        f"[source]\npath = {json.dumps(str(tiny))}\n[output]\nfolder = 'release'\n"
        "[[variant]]\ntarget = 'gguf:f16'\n"
    )
    return lambda words: [str(tiny) if word == "SOURCE" else word for word in words]


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long ends at once, and says what it was given in every way there is."""

    def stopped(*given: Any, **more: Any) -> Any:
        said = " ".join(map(str, (*given, *more.values())))
        warnings.warn(UserWarning(said), stacklevel=2)
        logging.getLogger("a.library").warning("it is %s", said)
        raise UsageError(said)

    for heavy in (
        "verification.measurement.verify", "verification.tasks.compare_tasks",
        "solve.calibration.calibrate",
    ):  # fmt: skip
        monkeypatch.setattr(f"zenconvert.{heavy}", stopped)


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_no_value_is_obeyed(
    path: str, place: Callable[[tuple[str, ...]], list[str]], ended: Callable[..., Ended]
) -> None:
    command = dict(commands())[path]
    for value in VALUES:
        for words in lines(path, command, value):
            code, out, err = ended(*path.split(), *place(words))
            assert not OBEYED.findall(out + err), (words, out, err)
            assert "Traceback" not in err, words
            assert code in {0, 1, 2, 3, 4, 6}, (words, code, err)
            assert code == 0 or err.strip(), words


def test_what_libraries_log_is_not_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    with hearing_warnings():
        logging.getLogger("a.library").warning("it is %s", EVIL)
    assert "\\x1b[31m" in caplog.text
    assert not OBEYED.findall(caplog.text)


def _names_output(parameter: click.Parameter) -> bool:
    kind = parameter.type
    return isinstance(kind, click.Path) and not kind.exists


def test_no_output_is_a_hard_link_to_the_source(
    source: Path, place: Callable[[tuple[str, ...]], list[str]], ended: Callable[..., Ended]
) -> None:
    """Under another name in another folder."""
    linked = Path("linked.gguf")
    os.link(source / "config.json", linked)
    Path("recipe.toml").write_text(
        f"[source]\npath = {json.dumps(str(source))}\n[output]\nfolder = 'release'\n"
        "[[variant]]\ntarget = 'gguf:f16'\n"
    )
    before, tried = everything(source), 0
    for path, command in commands():
        outputs = [p for p in command.params if _names_output(p)]
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        for parameter in outputs if "SOURCE" in BASE[path] or path.startswith("release") else ():
            words = list(BASE[path])
            if isinstance(parameter, click.Argument):
                words[arguments.index(parameter)] = str(linked)
            else:
                words += [parameter.opts[-1], str(linked)]
            code, _, err = ended(*path.split(), *(source if w == "SOURCE" else w for w in words))
            assert code == 2, (path, words, err)
            assert "hard link" in err, (path, words, err)
            tried += 1
    assert tried > 8
    assert everything(source) == before
