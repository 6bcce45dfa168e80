"""Model cards, generation settings and other small files of any content beside good weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from tests.packed_folders import assert_same
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint
from zenconvert.cli import cli
from zenconvert.errors import CorruptFile, InvalidInput, UnsafePath, Unsupported

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CARDS: dict[str, bytes] = {
    "colon": b"license_name: my: license",
    "template": b"base_model: {{ base_model }}",
    "tab": b"tags:\n\t- a",
    "latin-1": "author: caf\u00e9".encode("latin-1"),
    "aliases": BOMB.encode(),
    "date": b"version: 2024-13-45",
    "nesting": b"tags: " + b"[" * 3000,
    "wide nesting": b"tags: " + b"[" * 100_000,
    "digits": b"version: " + b"9" * 5000,
    "hexadecimal": b"version: 0x" + b"f" * 9000,
    "surrogate": b'author: "\\ud800"',
    "a list for a word": b"author: [1, 2]",
    "a table for a word": b"license: {a: b}",
    "tables in a list": b"tags: [{a: b}]",
    "a number": b"7",
    "a tag": b"author: !!python/object:os.system {}",
    "large": b"x: " + b"y" * 200_000,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return raw_model(folder, "llama3", vocab_size=MAKERS["llama3"](folder))


def general(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {key: f.contents() for key, f in fields.items() if key.startswith("general.")}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_stops_nothing(name: str, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_bytes(b"---\nlicense: mit\n" + CARDS[name] + b"\n---\n# Model\n")
    with pytest.warns(UserWarning, match=r"README\.md: "):
        checkpoint = open_checkpoint(model)
    assert len(checkpoint.warnings) == 1
    convert(model, tmp_path / "out.gguf", "gguf:f16")
    assert general(tmp_path / "out.gguf")["general.architecture"] == "llama"
    convert(model, tmp_path / "out", "hf:f16")
    assert (tmp_path / "out" / "README.md").read_bytes() == (model / "README.md").read_bytes()


def test_right_facts_of_a_card_stay_beside_wrong_ones(model: Path, tmp_path: Path) -> None:
    card = (
        "---\nlicense: [mit, apache-2.0]\nauthor: {a: b}\ntags: [1, x]\nversion: 3\n"
        "language: [no, en]\n---\n"
    )
    (model / "README.md").write_text(card)
    with pytest.warns(UserWarning, match=r"make no sense there: 'author': \{'a': 'b'\}"):
        convert(model, tmp_path / "out.gguf", "gguf:f16")
    facts = general(tmp_path / "out.gguf")
    assert facts["general.license"] == "mit,apache-2.0"
    assert facts["general.tags"] == ["1", "x"]
    assert facts["general.version"] == "3"
    assert facts["general.languages"] == ["no", "en"]  # Norwegian, and no truth value
    assert "general.author" not in facts


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("top_k", '"many"'),
        ("top_k", "1e400"),
        ("top_k", "NaN"),
        ("top_k", str(1 << 40)),
        ("top_k", "true"),
        ("temperature", "[1]"),
        ("temperature", "1e300"),
        ("eos_token_id", '"<eos>"'),
        ("eos_token_id", "-1"),
        ("bos_token_id", "[1, 1.5]"),
    ],
)
def test_generation_settings_of_the_wrong_kind(
    key: str, text: str, model: Path, tmp_path: Path
) -> None:
    file = model / "generation_config.json"
    file.write_text(f'{{"top_p": 0.5, "{key}": {text}}}')
    with pytest.warns(UserWarning, match=f"make no sense there: '{key}'"):
        convert(model, tmp_path / "out.gguf", "gguf:f16")
    sampling = [k for k in general(tmp_path / "out.gguf") if "sampling" in k]
    assert sampling == ["general.sampling.top_p"]
    convert(model, tmp_path / "out", "hf:f16")
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "7" * 5000, '{"top_k": ' + "7" * 5000 + "}", '{"sequence": "\\ud800"}', POINTER,
    ],
)  # fmt: skip
def test_generation_settings_that_are_no_table(text: str, model: Path, tmp_path: Path) -> None:
    (model / "generation_config.json").write_text(text)
    with pytest.warns(UserWarning, match=r"generation_config\.json"):
        convert(model, tmp_path / "out", "hf:f16")
    assert not (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize("content", [POINTER, "<!DOCTYPE html><html>", "", "PK\x03\x04...."])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_files_that_are_not_what_they_are_called(name: str, content: str, model: Path) -> None:
    (model / name).write_text(content)
    words = {POINTER: "git lfs pull", "": "empty", "PK\x03\x04....": "zip"}.get(content, "web page")
    with pytest.raises(InvalidInput, match=rf"{name}: it is .*{words}"):
        convert(model, model.parent / "out.gguf", "gguf:f16")
    assert not (model.parent / "out.gguf").exists()


@pytest.mark.parametrize("name", ["m.gguf", "m.onnx", "m.bin", "tokenizer.model"])
def test_pointers_of_git_lfs_are_named(name: str, model: Path, tmp_path: Path) -> None:
    path = model / name if name == "tokenizer.model" else tmp_path / name
    path.write_text(POINTER)
    (model / "tokenizer.json").unlink()  # it would be read instead
    with pytest.raises((CorruptFile, Unsupported), match=rf"{name}: it is .*git lfs pull"):
        _ = open_checkpoint(model if name == "tokenizer.model" else path).tokenizer


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [fifo, folder, unix_socket])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "LICENSE", "tokenizer_config.json"],
)
def test_what_is_no_file_is_refused(name: str, make: Callable[[Path], None], model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    make(model / name)
    with pytest.raises((InvalidInput, Unsupported), match=r"found a|no config\.json"):
        open_checkpoint(model)


@pytest.mark.parametrize("make", [fifo, folder])
def test_a_card_that_is_no_file_stops_nothing(make: Callable[[Path], None], model: Path) -> None:
    make(model / "README.md")
    assert "found a" in open_checkpoint(model).warnings[0]


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    fifo(tmp_path / "pipe.gguf")
    with pytest.raises(InvalidInput, match="found a FIFO"):
        open_checkpoint(tmp_path / "pipe.gguf")
    with pytest.raises(InvalidInput, match="found a device"):
        open_checkpoint("/dev/zero")
    for name in ("x" * 300, f"{tmp_path}/{'y' * 300}", "a\0b"):
        with pytest.raises(InvalidInput, match="no such file"):
            open_checkpoint(name)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "README.md", "chat_template.jinja"])
def test_links_out_of_the_folder_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(UnsafePath, match=f"{name}: it is a link to .*secret"):
        open_checkpoint(model)
    (model / name).unlink()
    (model / name).symlink_to("tokenizer_config.json")
    if name == "LICENSE":
        assert (model / name).samefile((open_checkpoint(model).side_files or {})[name])


def hub_cache(model: Path, root: Path) -> Path:
    """The same model in the layout of the Hub cache."""
    repository = root / "models--acme--tiny-7B-chat"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (model / "LICENSE").write_text("MIT")
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_model_of_the_hub_cache_has_its_own_name(model: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(model, tmp_path / "hub")
    checkpoint = open_checkpoint(snapshot)
    assert not checkpoint.warnings
    assert "LICENSE" in (checkpoint.side_files or {})
    convert(snapshot, tmp_path / "out.gguf", "gguf:f16")
    facts = general(tmp_path / "out.gguf")
    assert facts["general.name"] == "Tiny 7B Chat"
    assert facts["general.organization"] == "Acme"
    assert "0123456789" not in json.dumps(facts)


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (f"Name-1B/snapshots/{'0a' * 20}", "Name-1B"),
        (f"Name-1B/{'0a' * 20}", "Name-1B"),
        ("Qwen/Qwen2___5-0___5B", "Qwen2.5-0.5B"),
        ("Name-1B", "Name-1B"),
    ],
)
def test_no_model_is_called_by_a_commit(
    place: str, label: str, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / place)
    assert open_checkpoint(tmp_path / place).metadata.label == label


@pytest.mark.parametrize(
    "name",
    [
        "acme/a..b",
        "acme/a--b",
        "acme/model.git",
        "acme/" + "a" * 97,
        "acme/mod\u00e8le",
        "-a/b",
        "a/b-",
    ],
)
def test_what_can_be_no_hub_id_is_not_asked_for(name: str) -> None:
    with pytest.raises(InvalidInput, match="it is no Hub id"):
        open_checkpoint(name)


def test_every_command_tells_of_oddities(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\na: b: c\n---\n")
    convert(model, tmp_path / "plain.gguf", "gguf:f16")
    for arguments in (
        ["inspect", str(model)],
        ["plan", str(model), "--to", "gguf:f16"],
        ["convert", str(model), str(tmp_path / "out.gguf"), "--to", "gguf:f16"],
        ["diff", str(model), str(tmp_path / "plain.gguf")],
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("the card is not understood") == 1, arguments
        again = [*arguments, "--json", *(["--force"] if arguments[0] == "convert" else [])]
        result = CliRunner().invoke(cli, again)
        (text,) = json.loads(result.stdout)["warnings"]
        assert "the card is not understood" in text


def test_what_is_odd_about_a_tokenizer_is_told_when_it_is_read(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    odd = replace(checkpoint.tokenizer, warnings=("it is odd",))
    with pytest.warns(UserWarning, match="it is odd"):
        _ = replace(checkpoint, load_tokenizer=lambda: odd).tokenizer


@pytest.mark.parametrize("target", ["gptq:w4g32", "awq:w4g32"])
def test_a_tied_pair_of_a_packed_folder_under_the_head_s_name(target: str, tmp_path: Path) -> None:
    source = raw_model(tmp_path / "m", "llama3", dtype="f16", tie_word_embeddings=True)
    plain, renamed = tmp_path / "plain", tmp_path / "renamed"
    convert(source, plain, target)
    shutil.copytree(plain, renamed)
    tensors = load_file(plain / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, renamed / "model.safetensors", metadata={"format": "pt"})
    assert_same(renamed, plain)
