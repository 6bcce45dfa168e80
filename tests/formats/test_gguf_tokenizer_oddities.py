"""Odd tokenizers of GGUF files: the HF files written from them cut text as llama.cpp does."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
import pytest

from tests.formats.test_tokenizer_differential import LLAMA, written
from tests.formats.test_tokenizer_oddities import TEXTS
from tests.tokenizer_oddities import byte_level, sentencepiece
from zenconvert.errors import InvalidInput, UnknownTokenizer
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.formats.hf.tokenizer_json import definition_of

SIZE: Final = 1960
Metadata = dict[str, Any]
Change = Callable[[Metadata], None]


@cache
def base(kind: str) -> Metadata:
    drawn = byte_level() if kind == "bpe" else sentencepiece()
    with tempfile.TemporaryDirectory() as folder:
        found = read_tokenizer(drawn.write(Path(folder)), vocab_size=SIZE)
        return dict(tokenizer_metadata(found, LLAMA))


def name(key: str) -> str:
    return f"tokenizer.ggml.{key}"


def put(**keys: Any) -> Change:
    """Keys of other values; None takes one away."""

    def change(metadata: Metadata) -> None:
        for key, value in keys.items():
            if value is None:
                metadata.pop(name(key), None)
            else:
                metadata[name(key)] = value

    return change


def at(number: int, **values: Any) -> Change:
    """Another text, type or score of one token."""

    def change(metadata: Metadata) -> None:
        for key, value in values.items():
            kind, found = metadata[name(key)]
            other: Any = list(found) if kind == "arr:str" else copy.copy(found)
            other[number] = value
            metadata[name(key)] = (kind, other)

    return change


def merges(change: Callable[[list[str]], list[str]]) -> Change:
    def changed(metadata: Metadata) -> None:
        metadata[name("merges")] = ("arr:str", change(list(metadata[name("merges")][1])))

    return changed


def called(title: str, *tokens: str) -> Change:
    """A model of that name, which has these control tokens at its end, too."""

    def change(metadata: Metadata) -> None:
        for i, text in enumerate(tokens):
            at(1959 - i, tokens=text, token_type=3)(metadata)
        metadata["general.name"] = ("str", title)

    return change


YES, NO = ("bool", True), ("bool", False)
CASES: Final[dict[str, tuple[str, Change]]] = {
    "as it is": ("bpe", put()),
    "pieces as they are": ("spm", put()),
    "bos is added and not named": ("bpe", put(bos_token_id=None, add_bos_token=YES)),
    "nothing on bos": ("bpe", put(bos_token_id=None, add_bos_token=None)),
    "eos is added": ("bpe", put(add_eos_token=YES)),
    "eos is added and not named": ("bpe", put(eos_token_id=None, add_eos_token=YES)),
    "pieces, none named": ("spm", put(eos_token_id=None, bos_token_id=None, add_eos_token=YES)),
    "pieces, nothing on bos": ("spm", put(bos_token_id=None, add_bos_token=None)),
    "pieces without bos": ("spm", put(add_bos_token=NO)),
    "no types": ("bpe", put(token_type=None)),
    "pieces without types": ("spm", put(token_type=None)),
    "an alias": ("bpe", put(pre=("str", "falcon3"))),
    "an alias that adds nothing": ("bpe", put(pre=("str", "smaug-bpe"), add_bos_token=None)),
    "a space that GPT-2 does not put": ("bpe", put(add_space_prefix=YES)),
    "pieces without a space": ("spm", put(add_space_prefix=NO)),
    "an unused word": ("bpe", at(500, token_type=5)),
    "an unused piece": ("spm", at(700, token_type=5)),
    "a user's word": ("bpe", at(600, token_type=4)),
    "a user's piece": ("spm", at(700, token_type=4)),
    "a user's piece with a space": ("spm", at(1955, tokens=" xy", token_type=4)),
    "a controlling piece": ("spm", at(700, token_type=3)),
    "an unknown id elsewhere": ("spm", put(unknown_token_id=("u32", 3))),
    "an unknown type elsewhere": ("spm", at(0, token_type=1)),
    "an empty token": ("bpe", at(1955, tokens="")),
    "an empty piece": ("spm", at(1955, tokens="")),
    "a score that is no number": ("spm", at(700, scores=np.float32("nan"))),
    "an endless score": ("spm", at(700, scores=np.float32("inf"))),
    "a good score": ("spm", at(700, scores=np.float32(7))),
    "a merge of no tokens": ("bpe", merges(lambda rows: [*rows, "qq zz"])),
    "few merges": ("bpe", merges(lambda rows: rows[:300])),
    "a merge twice": ("bpe", merges(lambda rows: [*rows, rows[0]])),
    "no merges": ("bpe", merges(lambda rows: [])),
    "a plain end of a turn": ("bpe", at(1955, tokens="<|im_end|>", token_type=1)),
    "a plain middle": ("bpe", at(1955, tokens="<|fim_middle|>", token_type=1)),
    "control with spaces": ("bpe", at(1955, tokens="< x >", token_type=3)),
    "a user's word of letters": ("bpe", at(1955, tokens="नम", token_type=4)),
    "a byte of no number": ("spm", at(10, tokens="<0xZZ>")),
    "a byte less": ("spm", at(68, tokens="<gone>", token_type=1)),
    "an unknown token of GPT-2": ("bpe", put(unknown_token_id=("u32", 0))),
    "pieces of Phi-3": ("spm", called("Phi3", "<|endoftext|>", "<|user|>")),
    "a byte-level Phi-3": ("bpe", called("my phi-3 mini", "<|endoftext|>", "<|user|>")),
    "a mask": ("bpe", called("Modern-BERT-like", "[MASK]")),
    "spaces to remove": ("bpe", put(remove_extra_whitespaces=YES)),
    "pieces with spaces to remove": ("spm", put(remove_extra_whitespaces=YES)),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_hf_cuts_text_as_llamacpp(what: str, tmp_path: Path) -> None:
    kind, change = CASES[what]
    metadata = dict(base(kind))
    change(metadata)
    file = tmp_path / "vocab.gguf"
    header = {"general.architecture": ("str", "llama"), **metadata}
    file.write_bytes(container.pack_header(header, []))
    engine = llama_cpp.Llama(model_path=str(file), vocab_only=True, verbose=False)
    ours = tokenizer_from_metadata(metadata, where="test")
    ids = {f"{role}_token_id": number for role, number in ours.special.items()}
    config = {"model_type": "llama", "vocab_size": SIZE, **ids}
    (tmp_path / "config.json").write_text(json.dumps(config))
    back, encoder = written(ours, tmp_path, tmp_path / "back"), TextEncoder(ours)
    for text in TEXTS:
        for framed in (False, True):
            expected = list(engine.tokenize(text.encode(), add_bos=framed, special=True))
            assert back.encode(text, add_special_tokens=framed) == expected, text
        assert encoder.encode(text) == back.encode(text, add_special_tokens=False), text
    engine.close()


def through_no_token(metadata: Metadata) -> None:
    at(1955, tokens="wordz", token_type=1)(metadata)
    merges(lambda rows: ["w o", "wo r", "wor d", "word z", *rows])(metadata)


NO_TOKENS: Final[dict[str, Change]] = {
    "a merge of what is none": at(71, tokens="<gone>"),  # it was e
    "a merge that makes none": merges(lambda rows: [*rows, "x q"]),
    "merges through what is none": through_no_token,
}


@pytest.mark.parametrize("what", NO_TOKENS)
def test_merges_of_what_is_no_token_are_refused_where_llamacpp_comes_to_them(
    what: str, tmp_path: Path
) -> None:
    metadata = dict(base("bpe"))
    NO_TOKENS[what](metadata)
    ours = tokenizer_from_metadata(metadata, where="test")
    with pytest.raises(UnknownTokenizer, match="is no token"):
        definition_of(ours)
    assert tokenizer_metadata(ours, LLAMA)[name("merges")] == metadata[name("merges")]
    file = tmp_path / "vocab.gguf"
    header = {"general.architecture": ("str", "llama"), **metadata}
    file.write_bytes(container.pack_header(header, []))
    engine = llama_cpp.Llama(model_path=str(file), vocab_only=True, verbose=False)
    found = list(engine.tokenize(b"wordz", add_bos=False, special=True))
    assert (found == [1955]) == (NO_TOKENS[what] is through_no_token)


def test_what_a_tokenizer_json_cannot_say_is_told() -> None:
    metadata = dict(base("spm"))
    put(scores=("arr:f32", np.zeros(SIZE, dtype=np.float32)))(metadata)
    [told] = tokenizer_from_metadata(metadata, where="test").warnings
    assert "have the same score" in told
    metadata = dict(base("bpe"))
    put(bos_token_id=None, add_bos_token=YES)(metadata)
    [told] = tokenizer_from_metadata(metadata, where="test").warnings
    assert "it adds bos and names none: llama.cpp takes token 11" in told
    at(1955, tokens="a")(metadata)
    with pytest.raises(InvalidInput, match="a text has one id there"):
        definition_of(tokenizer_from_metadata(metadata, where="test"))
