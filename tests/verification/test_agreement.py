"""Artifacts of one release against one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zenconvert import Checkpoint, open_checkpoint
from zenconvert.model.tokenizer import Tokenizer, TokenType
from zenconvert.verification.agreement import check_agreement

SOURCE = "builtin:zen-nano"


@pytest.fixture(scope="module")
def reference() -> Checkpoint:
    return open_checkpoint(SOURCE)


def altered(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    tokenizer: Tokenizer = replace(checkpoint.tokenizer, **changes)  # type: ignore[arg-type]
    return replace(checkpoint, load_tokenizer=lambda: tokenizer)


def test_the_formats_agree(
    reference: Checkpoint, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    candidates = {"gguf": open_checkpoint(gguf(SOURCE, "q4_0")), "itself": reference}
    assert check_agreement(reference, candidates) == ()


def test_another_vocabulary(reference: Checkpoint) -> None:
    tokens = list(reference.tokenizer.tokens)
    tokens[700], tokens[701] = tokens[701], tokens[700]
    found = check_agreement(reference, {"swapped": altered(reference, tokens=tokens)})
    assert [(d.candidate, d.what) for d in found] == [("swapped", "vocabulary")]
    assert found[0].expected.startswith("token 700 ")
    assert "1 more" in found[0].found
    shorter = altered(reference, tokens=tokens[:-1], types=reference.tokenizer.types[:-1])
    assert "8191 tokens" in {d.found for d in check_agreement(reference, {"x": shorter})}


def test_other_special_tokens(reference: Checkpoint) -> None:
    special = {**reference.tokenizer.special, "pad": 8190}
    found = check_agreement(reference, {"x": altered(reference, special=special)})
    assert [d.what for d in found] == ["special tokens"]
    assert str(found[0]) == (
        "x: special tokens: expected pad '<|endoftext|>' (8189), found '<|im_start|>' (8190)"
    )
    types = list(reference.tokenizer.types)
    types[8190] = TokenType.NORMAL
    found = check_agreement(reference, {"x": altered(reference, types=types)})
    assert [(d.what, d.expected) for d in found] == [("special tokens", "token 8190 special")]
    found = check_agreement(reference, {"x": altered(reference, adds={"bos": True})})
    assert [(d.what, d.found) for d in found] == [("special tokens", "BOS before every text")]


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
def test_another_chat_template(reference: Checkpoint, template: str | None) -> None:
    found = check_agreement(reference, {"x": altered(reference, chat_template=template)})
    assert [d.what for d in found] == ["chat template"]
    assert found[0].found.startswith("none" if template is None else "25 characters")


def test_another_end_of_text(reference: Checkpoint) -> None:
    special = {**reference.tokenizer.special, "eos": 8189}
    found = check_agreement(reference, {"x": altered(reference, special=special)})
    assert [(d.what, d.found) for d in found] == [("end of text", "'<|endoftext|>' (8189)")]
    without = {role: n for role, n in special.items() if role != "eos"}
    found = check_agreement(reference, {"x": altered(reference, special=without)})
    assert [(d.what, d.found) for d in found] == [("end of text", "none")]
