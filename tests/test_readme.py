"""README tells the truth: its table is the code's, its Python example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from zenconvert.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_support_table_is_the_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.support_table", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "nano.gguf").exists()


def _commands(group: click.Group) -> Iterator[click.Command]:
    """Every command, those in groups too."""
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _commands(command)


def test_every_command_and_option_it_names_exists() -> None:
    options = {o for c in _commands(cli) for p in c.params for o in p.opts}
    for script in (ROOT / "scripts").glob("*"):
        if script.is_file():
            options |= set(re.findall(r"--[a-z][a-z-]+", script.read_text(encoding="utf-8")))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert option in {*options, "--help", "--version"}, option
    for command in re.findall(
        r"^zenconvert (\w+) +[A-Za-z]+[ :.]", README.split("```", 1)[1], re.MULTILINE
    ):
        assert command in cli.commands
    for script in re.findall(r"scripts/([a-z_]+(?:\.py)?)", README):
        assert (ROOT / "scripts" / script).exists(), script
