"""What people type who do not know the words yet: every answer says what to write instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from zenconvert.cli.commands import cli
from zenconvert.errors import CorruptFile, SourceNotFound, UsageError, ZenError

Family = Callable[[str], Path]
NANO = "builtin:zen-nano"


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def refused(kind: type[ZenError], *arguments: str | Path) -> str:
    """The message of an error of ours."""
    done = command(*arguments)
    assert type(done.exception) is kind, done.output
    return str(done.exception)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"language": "en", "text": "The cat sat on the mat. " * 12}))
    return path


@pytest.fixture
def stats(model: Family, text: Path, tmp_path: Path) -> Path:
    """Statistics without second moments."""
    out = tmp_path / "model.stats"
    done = command("calibrate", model("qwen2"), out, "--samples", text, "--context", "32")
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("qwen", "there is no such file or folder"),
        ("./nowhere", "there is no such file or folder"),
        ("https://huggingface.co/Qwen/Qwen1.5-110B", "this is an address, not a model's name"),
    ],
)
def test_sources_that_are_none(source: str, told: str) -> None:
    message = refused(SourceNotFound, "inspect", source)
    assert told in message
    assert "organisation/name[@revision]" in message


@pytest.mark.parametrize("target", ["q4_k_m", "safetensors", "exl2:4.0bpw", "mlx", "gguf/q4_k_m"])
def test_targets_that_are_none(target: str) -> None:
    message = refused(UsageError, "plan", NANO, "--to", target)
    assert "write format[:type], e.g. gguf:q4_k_m" in message


def test_statistics_that_do_not_serve_are_told_before_the_conversion(
    model: Family, stats: Path
) -> None:
    message = refused(UsageError, "plan", model("qwen2"), "--to", "gptq:w4g128", "--stats", stats)
    assert "holds no second moments; calibrate with --for gptq" in message
    assert command("plan", model("qwen2"), "--to", "gguf:q4_k_m", "--stats", stats).exit_code == 0
    message = refused(UsageError, "plan", model("qwen2"), "--to", "hf:f16", "--stats", stats)
    assert "--stats) makes no sense for hf targets" in message


def test_an_imatrix_is_no_statistics_file(model: Family, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "im.gguf"
    message = refused(
        UsageError, "calibrate", model("qwen2"), out, "--samples", text, "--for", "gguf,gptq"
    )
    assert "no room for what gptq and awq need" in message
    assert not out.exists()


def test_a_policy_is_read_before_the_work(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: Any, **given: Any) -> None:
        pytest.fail("the measurement has begun")

    monkeypatch.setattr("zenconvert.verification.measurement.verify", work)
    wrong = tmp_path / "policy.toml"
    wrong.write_text("name = 1\n")
    for policy in (wrong, tmp_path / "nowhere.toml"):
        message = refused(UsageError, "verify", NANO, NANO, "--text", text, "--gate", policy)
        assert policy.name in message


@pytest.mark.parametrize(
    ("target", "name", "told"),
    [
        ("gptq:w4g128", "out.gguf", "gptq targets are folders, and this looks like a file"),
        ("hf:f16", "model.safetensors", "hf targets are folders, and this looks like a file"),
        ("gguf:q8_0", "out", "most programs know gguf files by the suffix .gguf"),
        ("gguf:q8_0", "out.gguf", None),
        ("gguf:q8_0", "OUT.GGUF", None),
        ("hf:f16", "Qwen2.5-7B", None),
    ],
)
def test_names_that_mislead(
    target: str, name: str, told: str | None, model: Family, tmp_path: Path
) -> None:
    done = command("convert", model("qwen2"), tmp_path / name, "--to", target)
    assert done.exit_code == 0, done.output
    assert (tmp_path / name).exists()
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warned == ([] if told is None else [f"warning: {tmp_path / name}: {told}"])


def test_files_of_a_folder_of_samples_are_named_whole(model: Family, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/config.json").write_text('{"model_type": "qwen2"}')
    message = refused(
        CorruptFile, "calibrate", model("qwen2"), tmp_path / "out", "--samples", tmp_path / "texts"
    )
    assert message.startswith(f"{tmp_path / 'texts'}: config.json:1: ")


@pytest.mark.parametrize("value", ["0.1", "-1", "no"])
def test_a_bound_of_what_is_not_solved(value: str, tmp_path: Path) -> None:
    done = command(
        "convert", NANO, tmp_path / "out", "--to", "gptq:w4g128", "--max-module-error", value
    )
    told = f"{done.output} {done.exception}"
    assert "--max-module-error" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", NANO, NANO, "--languages", ","),
        ("calibrate", NANO, "OUT", "--languages", " , "),
        ("calibrate", NANO, "OUT", "--for", ""),
    ],
)
def test_lists_of_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    places = [str(tmp_path / "out") if one == "OUT" else one for one in arguments]
    message = refused(UsageError, *places)
    assert "names nothing; write names with commas between them" in message


def test_a_key_is_looked_at_before_the_work(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: Any, **given: Any) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("zenconvert.publication.release_run._made", work)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[source]\npath = "{NANO}"\n[output]\nfolder = "release"\n[[variant]]\n'
        'target = "gguf:f16"\n'
    )
    message = refused(UsageError, "release", recipe, "--sign-key", text)
    assert f"{text}: it cannot sign: " in message
