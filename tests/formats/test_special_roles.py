"""Special tokens by role, wherever a folder names them: GGUF files have those of AutoTokenizer, and
so do folders made from them, or the plan names the role."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.differential import runs
from zenconvert import convert, plan
from zenconvert.formats.gguf import container

ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask",
}  # fmt: skip
"""Role → what GGUF calls it."""
WORD = 300
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": runs.VOCAB, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
PLACES = ("a word", "an object", "the map", "padding")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


def edited(folder: Path, name: str, edit: dict[str, Any], *, without: str = "") -> None:
    path = folder / name
    table = json.loads(path.read_text()) if path.is_file() else {}
    table.pop(without, None)
    path.write_text(json.dumps({**table, **edit}))


def cases() -> Iterator[tuple[str, str]]:
    for role in ROLES:
        for place in PLACES[:3]:
            if role != "bos" if place == "the map" else role in ("bos", "pad", "cls"):
                yield role, place
    yield "pad", "padding"


@pytest.mark.parametrize(("role", "place"), list(cases()))
def test_a_word_that_a_file_names_is_that_role_everywhere(
    role: str, place: str, tokenizer: Path, tmp_path: Path
) -> None:
    source = runs.write_model(tmp_path / "source", CONFIG, tokenizer, 1)
    vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    word = next(text for text, number in vocab.items() if number == WORD)
    if place == "padding":
        padding = {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": WORD, "pad_type_id": 0, "pad_token": word,
        }  # fmt: skip
        edited(source, "tokenizer.json", {"padding": padding})
    elif place == "the map":
        for key in ("added_tokens_decoder", f"{role}_token"):
            edited(source, "tokenizer_config.json", {}, without=key)
        edited(source, "special_tokens_map.json", {f"{role}_token": word})
    else:
        token = {"content": word, "special": True, "__type": "AddedToken"}
        named = word if place == "a word" else token
        edited(source, "tokenizer_config.json", {f"{role}_token": named})
    expected = AutoTokenizer.from_pretrained(source)
    assert getattr(expected, f"{role}_token_id") == WORD
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    metadata = container.read(tmp_path / "m.gguf").metadata
    assert metadata[f"tokenizer.ggml.{ROLES[role]}_token_id"] == ("u32", WORD)
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    settings = AutoTokenizer.from_pretrained(tmp_path / "back")
    found = {getattr(settings, f"{role}_token_id"), config.get(f"{role}_token_id")}
    assert WORD in found


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"pad_token": "<beyond>"}, "pad_token is token 320, of which the model has no row"),
        ({"pad_token": None}, "pad_token is token 300, and token 301 in another file"),
    ],
    ids=["beyond", "other"],
)
def test_a_role_that_gguf_has_otherwise_is_named(
    edit: dict[str, Any], told: str, tokenizer: Path, tmp_path: Path
) -> None:
    source = runs.write_model(tmp_path / "source", CONFIG, tokenizer, 1)
    if edit["pad_token"] is None:
        vocab = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
        edit = {"pad_token": next(text for text, number in vocab.items() if number == WORD)}
        edited(source, "config.json", {"pad_token_id": WORD + 1})
    edited(source, "tokenizer_config.json", edit)
    planned = plan(source, "gguf:f32")
    assert [fact.value for fact in planned.lost] == [told]
    assert plan(source, "onnx:f32").exact  # whose folders have the files themselves
