"""The tokenizers library, which encodes text: one place that loads a ``tokenizer.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from zenconvert.base.machine import memory_errors
from zenconvert.base.native import heard
from zenconvert.errors import CorruptFile, InvalidInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_WORD: Final = "a"
_PREFIXED: Final = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')


def load(definition: bytes | str, where: str) -> FastTokenizer:
    """A tokenizer without truncation or padding. Raises CorruptFile where the library refuses it.

    ``where`` names the file. A word is encoded, as some files are refused only then.
    """
    from tokenizers import Tokenizer as FastTokenizer

    with memory_errors(where):
        text = definition if isinstance(definition, str) else _text(definition, where)
        _refuse_prefix(text, where)
        try:
            with heard():
                fast = FastTokenizer.from_str(text)
                fast.no_truncation()
                fast.no_padding()
                with suppress(Exception):  # whether it knows the word is not the question
                    fast.encode(_WORD)
        except Exception as error:
            reason = " ".join(str(error).split())
            told = f"{where}: the tokenizers library refuses it: {reason:.300}"
            raise CorruptFile(told) from error
    return fast


def encode(library: FastTokenizer, text: str, *, framed: bool = False) -> list[int]:
    """Token ids; ``framed`` with what the post-processor adds. Raises InvalidInput."""
    try:
        with heard():
            ids: list[int] = library.encode(text, add_special_tokens=framed).ids
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(
            f"the tokenizers library cannot encode {text!r:.80}: {reason:.300}"
        ) from error
    return ids


def decode(library: FastTokenizer, ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out. Raises InvalidInput."""
    try:
        with heard():
            text: str = library.decode(list(ids), skip_special_tokens=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(f"the tokenizers library cannot decode tokens: {reason:.300}") from error
    return text


def _text(definition: bytes, where: str) -> str:
    try:
        return definition.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{where}: it is no UTF-8 text: {error.reason}") from error


def _refuse_prefix(text: str, where: str) -> None:
    """Raise CorruptFile for merges without the prefix that a BPE model says they have.

    The library cuts it off unseen and aborts the process where that parts a character.
    """
    if not _PREFIXED.search(text):
        return
    try:
        model = json.loads(text)["model"]
        if model.get("type") == "WordPiece":
            return  # it cuts nothing off
        prefix = model["continuing_subword_prefix"]
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        whole = all(right.startswith(prefix) for _, right in pairs)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CorruptFile(
            f"{where}: continuing_subword_prefix should begin the second part of every merge"
        )
