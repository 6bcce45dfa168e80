"""BOS and EOS around a text: transformers, llama.cpp on what is written, and back in HF."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.formats.test_tokenizer_differential import LLAMA, vocabulary_file, written
from tests.tokenizer_draws import Draw, byte_level_draw, pieces, pieces_draw
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf.tokenizer import read_tokenizer
from zenconvert.model.architecture import for_model_type
from zenconvert.model.pretokenizer import by_name

TEXT = "Some words, 12 of them."
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


def template(*, first: bool, last: bool) -> dict[str, Any]:
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if first else []
    end = [{"SpecialToken": {"id": "</s>", "type_id": 0}}] if last else []
    return {
        "type": "TemplateProcessing",
        "single": [*begin, a, *end],
        "pair": [*begin, a, *end, *begin, b, *end],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]}
            for i, text, used in ((1, "<s>", first), (2, "</s>", last))
            if used
        },
    }


BOS, EOS, BOTH = (
    template(first=True, last=False),
    template(first=False, last=True),
    template(first=True, last=True),
)
POST_PROCESSORS: dict[str, Any] = {
    "none": None,
    "bytes": BYTES,
    "bos": BOS,
    "eos": EOS,
    "both": BOTH,
    "roberta": {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True,
        "add_prefix_space": False,
    },
    "sequence": {"type": "Sequence", "processors": [BYTES, BOS]},
}  # fmt: skip
FLAGS: dict[str, dict[str, Any]] = {
    "silent": {},
    "bos": {"add_bos_token": True},
    "no bos": {"add_bos_token": False},
    "eos": {"add_eos_token": True, "add_bos_token": False},
}
KINDS = ("qwen2", "llama-bpe", "gpt-2", "spm")


def drawn(kind: str) -> Draw:
    """A tokenizer with ``<s>`` and ``</s>`` at 1 and 2."""
    if kind == "spm":
        found = pieces_draw(5, random.Random(5), plain=True)
    else:
        rule = by_name(kind)
        assert rule is not None
        found = byte_level_draw(7, random.Random(7), rule, plain=True)
    assert found.exact
    assert not found.refused
    found.files["tokenizer_config.json"] |= {"bos_token": "<s>", "eos_token": "</s>"}
    return found


def check(source: Draw, folder: Path) -> dict[str, Any]:
    """Metadata of a tokenizer with which llama.cpp frames a text as transformers does."""
    path = source.write(folder / "source")
    ours = read_tokenizer(path, vocab_size=source.size)
    assert not ours.losses
    expected = AutoTokenizer.from_pretrained(path).encode(TEXT)
    engine = vocabulary_file(ours, folder / "vocab.gguf")
    assert list(engine.tokenize(TEXT.encode(), add_bos=True, special=True)) == expected
    engine.close()
    metadata = tokenizer_metadata(ours, LLAMA)
    read = tokenizer_from_metadata(metadata, where="test")
    assert written(read, path, folder / "back").encode(TEXT) == expected
    return dict(metadata)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("post", POST_PROCESSORS)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_text_is_framed_as_transformers_does(
    flags: str, post: str, kind: str, tmp_path: Path
) -> None:
    source = drawn(kind)
    source.files["tokenizer.json"]["post_processor"] = POST_PROCESSORS[post]
    source.files["tokenizer_config.json"] |= FLAGS[flags]
    check(source, tmp_path)


def test_a_vocabulary_of_granites_size_adds_bos_where_its_files_do(tmp_path: Path) -> None:
    """llama.cpp's converter writes that none of this size does, whatever its files say."""
    source = drawn("llama-bpe")
    source.size = 49152
    source.files["tokenizer.json"]["post_processor"] = BOS
    assert check(source, tmp_path)["tokenizer.ggml.add_bos_token"] == ("bool", True)


@pytest.mark.parametrize("flags", FLAGS)
def test_a_lone_sentencepiece_model_adds_what_its_flags_say(flags: str, tmp_path: Path) -> None:
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    files = {"tokenizer.model": pieces(), "tokenizer_config.json": settings | FLAGS[flags]}
    check(Draw(0, "lone", 1600, files), tmp_path)


def test_what_contradicts_or_is_not_said_is_warned_of(tmp_path: Path) -> None:
    source = drawn("llama-bpe")
    settings = source.files["tokenizer_config.json"]
    source.files["tokenizer.json"]["post_processor"] = BOS
    path = source.write(tmp_path / "agree")
    assert not read_tokenizer(path, vocab_size=source.size).warnings
    settings |= {"add_bos_token": False, "add_eos_token": True}
    path = source.write(tmp_path / "differ")
    first, second = read_tokenizer(path, vocab_size=source.size).warnings
    assert "add_bos_token is false in tokenizer_config.json" in first
    assert "tokenizer.json adds it" in first
    assert "add_eos_token is true in tokenizer_config.json" in second
    assert "tokenizer.json does not add it" in second
    lone = Draw(0, "lone", 1600, {"tokenizer.model": pieces()}).write(tmp_path / "lone")
    warnings = read_tokenizer(lone, vocab_size=1600).warnings
    assert any("nothing says whether BOS begins a text" in text for text in warnings)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gemma2"])
def test_no_space_is_put_before_a_text_where_none_was(family: str, tmp_path: Path) -> None:
    """llama.cpp's converter says so for some families alone."""
    source = drawn("spm")
    escape = source.files["tokenizer.json"]["normalizer"]["normalizers"][-1]
    source.files["tokenizer.json"]["normalizer"] = escape
    path = source.write(tmp_path / "source")
    ours = read_tokenizer(path, vocab_size=source.size)
    expected = AutoTokenizer.from_pretrained(path).encode(TEXT, add_special_tokens=False)
    engine = vocabulary_file(ours, tmp_path / "vocab.gguf", for_model_type(family).in_gguf)
    assert list(engine.tokenize(TEXT.encode(), add_bos=False, special=True)) == expected
    engine.close()
