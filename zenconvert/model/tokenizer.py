"""A tokenizer apart from any file: vocabulary, merge rules and special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal

Kind = Literal["bpe", "spm", "unigram", "other"]
"""Byte-level BPE, SentencePiece BPE with byte fallback, SentencePiece Unigram, or anything else
that the tokenizers library encodes with."""


class TokenType(IntEnum):
    """What a token stands for; the numbers are those of ``llama_token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and how it cuts text.

    All sequences over the vocabulary have one entry per token id and are lists. Only ``bpe`` and
    ``spm`` are described in full; the other kinds have a ``definition``.
    """

    kind: Kind
    tokens: Sequence[str]
    """Text by id: in GPT-2's byte alphabet for ``bpe``, with ``▁`` for spaces for ``spm`` and
    ``unigram``."""
    types: Sequence[int]
    """:class:`TokenType` by id."""
    scores: Sequence[float] | None = None
    """Log probability by id, ``spm`` only; of two merges the one with the higher score wins."""
    merges: Sequence[str] = ()
    """``"left right"``, strongest first; of ``spm`` where the source has them beside scores."""
    rule: str | None = None
    """Name of the pre-tokenizer rule (see ``pretokenizer``), None where no rule matches."""
    rule_problem: str = ""
    """Why no rule matches."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Role (bos, eos, unk, sep, pad, cls, mask, eot, eom) → id, in the order in which they were
    declared."""
    adds: Mapping[str, bool] = field(default_factory=dict)
    """Role → whether encoding adds that token; a role that the source is silent on is absent."""
    unsaid: frozenset[str] = frozenset()
    """Roles of ``adds`` that follow from no statement of the files: a format whose default is the
    same need not state them."""
    add_space_prefix: bool | None = None
    """Whether a space is put before the text; None where the source is silent."""
    strips_before: frozenset[int] = frozenset()
    """Ids of special and added tokens before which white space is dropped."""
    strips_behind: frozenset[int] = frozenset()
    """… and after which."""
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    """Further chat templates, for tools for example."""
    definition: bytes | None = None
    """The ``tokenizer.json`` it came from, which then does the encoding."""
    normal_table: bytes = b""
    """SentencePiece's table of normal forms, which comes before the definition."""
    problem: str = ""
    """Why llama.cpp cannot have it; empty where it can."""
    losses: tuple[str, ...] = ()
    """What llama.cpp does otherwise, each in a few words."""
    score_losses: tuple[str, ...] = ()
    """What it does otherwise, too, where a file tells merges by scores alone."""
    ignored: tuple[str, ...] = ()
    """What llama.cpp does not do and need not, each in a few words."""
    warnings: tuple[str, ...] = ()
    """What is odd about its files, and how it was taken."""

    @property
    def add_bos(self) -> bool:
        """Whether BOS begins every sequence."""
        return self.adds.get("bos", False) and "bos" in self.special


ADDED_SCORE: Final = -1000.0
"""Score of tokens that were added to pieces."""


def piece_scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> list[float]:
    """Scores under which pieces merge in the order of ``merges``: minus the rank of the merge that
    makes one, and all others after these."""
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault(merge.replace(" ", ""), len(ranks))
    found = [-float(ranks.get(text, len(ranks) + i)) for i, text in enumerate(tokens)]
    fixed = {int(TokenType.BYTE): 0.0, int(TokenType.CONTROL): ADDED_SCORE,
             int(TokenType.USER_DEFINED): ADDED_SCORE}  # fmt: skip
    return [fixed.get(int(kind), score) for score, kind in zip(found, types, strict=True)]


def gpt2_alphabet() -> dict[str, int]:
    """Character → byte in GPT-2's byte-level BPE: what is printable in Latin-1 stands for itself,
    the others for U+0100 onwards."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    shifted = {chr(0x100 + n): byte for n, byte in enumerate(others)}
    return {chr(byte): byte for byte in itself} | shifted


def hole(number: int) -> str:
    """The text of an id that no token has, as llama.cpp's converter writes it."""
    return f"[PAD{number}]"
