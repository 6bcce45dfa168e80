"""White space beside special tokens, which llama.cpp drops by the name of a model alone.

No key of a file says it: tokens lose it by ``general.name`` and ``tokenizer.ggml.pre``.

Source: "Handle per token attributes" in ``llama_vocab::impl::load`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.model.tokenizer import Tokenizer, TokenType

_MASK_BY_PRE: Final = ("jina-v2-de", "jina-v2-es", "jina-v2-code")
_BEHIND_BY_NAME: Final = ("phi-3", "phi3")
_MASK_BY_NAME: Final = "modern-bert"
_KEPT: Final = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens of Phi-3 after which white space stays."""
_WANTED: Final = ("</s>", *_KEPT)
"""Tokens without which llama.cpp loads no file of such a name."""
_SPECIAL: Final = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_SHOWN: Final = 3


@dataclass(frozen=True)
class Stripping:
    """Ids of the tokens before and after which llama.cpp drops white space."""

    before: frozenset[int] = frozenset()
    behind: frozenset[int] = frozenset()
    missing: tuple[str, ...] = ()
    """Tokens that a file of such a name has to have."""


def stripping(name: str, pre: str, tokens: Sequence[str], types: Sequence[int]) -> Stripping:
    """What llama.cpp does with a file of that ``general.name`` and ``tokenizer.ggml.pre``."""
    name = name.lower()

    def called(text: str) -> frozenset[int]:
        return frozenset(i for i, t in enumerate(tokens) if t == text and types[i] in _SPECIAL)

    if any(part in pre for part in _MASK_BY_PRE):
        return Stripping(before=called("<mask>"))
    if any(part in name for part in _BEHIND_BY_NAME):
        special = (i for i, kind in enumerate(types) if kind in _SPECIAL)
        behind = frozenset(i for i in special if tokens[i] not in _KEPT)
        return Stripping(behind=behind, missing=tuple(t for t in _WANTED if t not in set(tokens)))
    if _MASK_BY_NAME in name:
        return Stripping(before=called("[MASK]"))
    return Stripping()


def differences(tokenizer: Tokenizer, found: Stripping) -> Iterator[str]:
    """What llama.cpp does otherwise than a tokenizer, each in a few words."""
    for side, flag, wanted, done in (
        ("before", "lstrip", tokenizer.strips_before, found.before),
        ("after", "rstrip", tokenizer.strips_behind, found.behind),
    ):
        if kept := wanted - done:
            yield f"the space {side} {_shown(tokenizer, kept)} is kept ({flag})"
        if dropped := done - wanted:
            yield f"the space {side} {_shown(tokenizer, dropped)} is dropped, by the model's name"


def _shown(tokenizer: Tokenizer, ids: frozenset[int]) -> str:
    texts = [repr(tokenizer.tokens[i]) for i in sorted(ids)]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
