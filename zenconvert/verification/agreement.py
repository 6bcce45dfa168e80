"""Do the artifacts of a release agree on what a client sees: vocabulary, special tokens, chat
template, end of text?

One file of a repository without the chat template, or with another end-of-text token, is a fault
that no figure shows: the numbers are about token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zenconvert.errors import several
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.tokenizer import Tokenizer, TokenType

_MARKED = (TokenType.CONTROL, TokenType.USER_DEFINED)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Something in which a candidate is not as the reference."""

    candidate: str
    what: str
    """``vocabulary``, ``special tokens``, ``chat template`` or ``end of text``."""
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.candidate}: {self.what}: expected {self.expected}, found {self.found}"


def check_agreement(
    reference: Checkpoint, candidates: Mapping[str, Checkpoint]
) -> tuple[Disagreement, ...]:
    """Compare every candidate, by name, with the reference; empty where all agree."""
    return tuple(
        Disagreement(name, what, expected, found)
        for name, candidate in candidates.items()
        for what, expected, found in _differences(reference, candidate)
    )


def _differences(reference: Checkpoint, candidate: Checkpoint) -> Iterator[tuple[str, str, str]]:
    ours, theirs = reference.tokenizer, candidate.tokenizer
    yield from _vocabulary(ours, theirs)
    yield from _special(ours, theirs)
    if ours.chat_template != theirs.chat_template:
        yield "chat template", _start(ours.chat_template), _start(theirs.chat_template)
    ends = [_named(tokenizer, "eos") for tokenizer in (ours, theirs)]
    if ends[0] != ends[1]:
        yield "end of text", ends[0], ends[1]


def _vocabulary(ours: Tokenizer, theirs: Tokenizer) -> Iterator[tuple[str, str, str]]:
    if len(ours.tokens) != len(theirs.tokens):
        yield "vocabulary", f"{len(ours.tokens)} tokens", f"{len(theirs.tokens)} tokens"
        return
    pairs = zip(ours.tokens, theirs.tokens, strict=True)
    differing = [n for n, (a, b) in enumerate(pairs) if a != b]
    if differing:
        first = differing[0]
        found = f"{theirs.tokens[first]!r} and {len(differing) - 1} more that differ"
        yield "vocabulary", f"token {first} {ours.tokens[first]!r}", found


def _special(ours: Tokenizer, theirs: Tokenizer) -> Iterator[tuple[str, str, str]]:
    """Roles that both name, whether BOS begins a text, and which tokens are special at all."""
    for role in ours.special:
        if role != "eos" and role in theirs.special:
            expected, found = _named(ours, role), _named(theirs, role)
            if expected != found:
                yield "special tokens", f"{role} {expected}", found
    if ours.add_bos != theirs.add_bos:
        words = {True: "BOS before every text", False: "no BOS before texts"}
        yield "special tokens", words[ours.add_bos], words[theirs.add_bos]
    marked = [{n for n, kind in enumerate(t.types) if kind in _MARKED} for t in (ours, theirs)]
    if marked[0] != marked[1]:
        only = sorted(marked[0] ^ marked[1])
        first = only[0]
        words = {True: "special", False: "not special"}
        yield (
            "special tokens",
            f"token {first} {words[first in marked[0]]}",
            f"{words[first in marked[1]]}; "
            f"{several(len(only), 'token differs', 'tokens differ')} so",
        )


def _named(tokenizer: Tokenizer, role: str) -> str:
    number = tokenizer.special.get(role)
    if number is None:
        return "none"
    known = number < len(tokenizer.tokens)
    return f"{tokenizer.tokens[number]!r} ({number})" if known else f"token {number}"


def _start(template: str | None) -> str:
    return "none" if template is None else f"{len(template)} characters {template[:40]!r}…"
