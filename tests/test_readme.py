"""README and docs tell the truth: tables are the code's, the Python example runs, names exist."""

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
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("calibration", "command-line", "exactness", "onnx", "verification")
]


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
    others = {"--help", "--version", "--no-cache-dir"}
    for text in (README, *(path.read_text(encoding="utf-8") for path in PAGES)):
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)):
            assert option in options | others, option
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for command in re.findall(r"^(?:\$ )?zenconvert (\w+)", block, re.MULTILINE):
                assert command in cli.commands
        for script in re.findall(r"scripts/([a-z_]+(?:\.py)?)", text):
            assert (ROOT / "scripts" / script).exists(), script


def test_every_link_leads_somewhere() -> None:
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_what_documents_call_a_file_is_one() -> None:
    """Paths in code type of those two that say how it is built."""
    for path in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:zenconvert|formats|calib|tests|scripts)/[\w/.]+)`", text):
            assert (ROOT / name).exists(), f"{path.name}: {name}"
