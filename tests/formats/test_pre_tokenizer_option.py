"""``--pre``: every command takes a GGUF file that does not say how it cuts text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from tests.formats.test_tokenizer_files import without_pre
from zenconvert import calibrate, diff, open_checkpoint, plan_release, release
from zenconvert.cli import cli
from zenconvert.errors import UnknownTokenizer, UsageError, ZenError
from zenconvert.formats.gguf import container

Gguf = Callable[[str, str], Path]
NANO = "builtin:zen-nano"
TEXT = "Việt Nam 2026 — I'm here"
RECIPE = """\
[source]
path = "old.gguf"
{pre}
[output]
folder = "release"
[calibration]
enabled = false
[verify]
engines = []
[[variant]]
target = "gguf:q8_0"
[[variant]]
target = "hf:f32"
"""


@pytest.fixture(scope="module")
def old(gguf: Gguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as of before May 2024."""
    return without_pre(gguf(NANO, "f32"), tmp_path_factory.mktemp("old") / "old.gguf")


@pytest.mark.parametrize("command", ["plan", "convert", "calibrate", "verify", "tasks", "diff"])
def test_commands_have_the_option(command: str) -> None:
    assert "--pre NAME" in CliRunner().invoke(cli, [command, "--help"]).output


def test_a_difference_knows_how_both_cut_text(old: Path) -> None:
    assert diff(NANO, old).tokenizer == ("rule",)
    assert diff(NANO, old, pre="qwen2").identical
    with pytest.raises(UsageError, match="neither model is a GGUF file"):
        diff(NANO, NANO, pre="qwen2")


def test_calibration_says_what_to_name(old: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownTokenizer, match=r"--pre.*pre_tokenizer of \[source\]"):
        calibrate(old, tmp_path / "statistics")


def test_a_release_of_such_a_file(old: Path, tmp_path: Path) -> None:
    """Its GGUF files say it then, and its folders cut text as the original."""
    (tmp_path / "old.gguf").symlink_to(old)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(pre=""))
    with pytest.raises(ZenError, match="pre_tokenizer of"):
        plan_release(recipe)
    recipe.write_text(RECIPE.format(pre='pre_tokenizer = "qwen2"'))
    result = release(recipe)
    assert not result.failures
    made = tmp_path / "release"
    [file] = (made / "GGUF").glob("*.gguf")
    assert container.read(file).metadata["tokenizer.ggml.pre"] == ("str", "qwen2")
    [config] = made.glob("*/tokenizer.json")
    expected = AutoTokenizer.from_pretrained(open_checkpoint(NANO).path)(TEXT)["input_ids"]
    assert AutoTokenizer.from_pretrained(config.parent)(TEXT)["input_ids"] == expected
    assert json.loads((made / "report.json").read_text())
