"""Shells, terminals and homes as people have them: closed streams, no home, `| head`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zenconvert import convert

Family = Callable[[str], Path]
COMMAND = f"{sys.executable} -P -m zenconvert"


def shell(line: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A line of bash, with some variables changed or, where None, taken away."""
    environment = {**os.environ, **{k: v for k, v in changes.items() if v is not None}}
    for name in (name for name, value in changes.items() if value is None):
        environment.pop(name, None)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("zenconvert", COMMAND, 1)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, model: Family, tmp_path: Path) -> None:
    """The file is the same, and nothing that is printed gets into it."""
    convert(model("qwen2"), tmp_path / "expected.gguf", "gguf:q8_0")
    out = tmp_path / "found.gguf"
    done = shell(f"zenconvert convert {model('qwen2')} {out} --to gguf:q8_0 {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    digests = {hashlib.sha256(p.read_bytes()).digest() for p in tmp_path.glob("*.gguf")}
    assert len(digests) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"expected.gguf", "found.gguf"}


def test_an_error_keeps_its_code_without_anybody_to_tell() -> None:
    assert shell("zenconvert inspect nowhere <&- >&- 2>&-").returncode == 4


def test_head_takes_the_first_line_alone() -> None:
    done = shell("zenconvert plan builtin:zen-nano --to gguf:q4_k_m --explain | head -1")
    assert done.stdout.startswith("tensor ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"HOME": None, "XDG_CACHE_HOME": None},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": None},  # nobody can write below it, not even root
        {"HOME": "/nowhere", "XDG_CACHE_HOME": "/dev/null/cache"},
    ],
)
def test_homes_that_cannot_be_written(
    changes: dict[str, str | None], model: Family, tmp_path: Path
) -> None:
    """Caches are a help, never a need."""
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 12)
    done = shell(
        f"zenconvert verify {model('qwen2')} {model('qwen2')} --text {text} --device cpu",
        ZENCONVERT_CACHE=None, **changes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("language ")
