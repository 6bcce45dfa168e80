"""Pre-tokenizer rules, known by name and by structure (``pretokenizers.toml``)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.model.tokenizer import Tokenizer

GPT2: Final = "<gpt2>"
"""Step: the expression built into tokenizers' ByteLevel."""
DIGITS: Final = "<digits>"
"""Step: every digit on its own."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to cut text: normaliser, isolating expressions, and whether whole words that are
    tokens skip the merges."""

    name: str
    normalizers: tuple[str, ...]
    """Names of Unicode normal forms, "" for none; all are cut alike, the first is the usual one."""
    steps: tuple[str, ...]
    ignore_merges: bool
    aliases: tuple[str, ...]
    add_bos: bool
    """Whether llama.cpp puts BOS before every text where a file is silent."""
    losses: tuple[str, ...]
    """Where llama.cpp's own expressions cut otherwise."""


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("zenconvert.model") / "pretokenizers.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def rules() -> tuple[Rule, ...]:
    """Every known rule."""
    return tuple(
        Rule(
            name=row["name"],
            normalizers=tuple(row["normalizers"]),
            steps=tuple(row["steps"]),
            ignore_merges=row.get("ignore_merges", False),
            aliases=tuple(row.get("aliases", ())),
            add_bos=row.get("add_bos", False),
            losses=tuple(row.get("losses", ())),
        )
        for row in _table()["rule"]
    )


@cache
def llamacpp_names() -> tuple[str, ...]:
    """Every name of a pre-tokenizer that llama.cpp takes, described here or not."""
    return tuple(sorted({*known_names(), *_table()["llamacpp"]["other_names"]}))


@cache
def adding_bos() -> frozenset[str]:
    """Names under which llama.cpp puts BOS before every text where a file is silent."""
    adding = [r for r in rules() if r.add_bos]
    own = _table()["llamacpp"]["other_names_adding_bos"]
    return frozenset([*own, *(name for r in adding for name in (r.name, *r.aliases))])


@cache
def merging_models() -> frozenset[str]:
    """What llama.cpp calls tokenizers of SentencePiece's pieces that merge by rank."""
    return frozenset(_table()["llamacpp"]["merging_models"])


@cache
def always_control() -> frozenset[str]:
    """Texts of tokens that llama.cpp takes for control tokens whatever their type is."""
    return frozenset(_table()["llamacpp"]["control"])


def by_name(name: str) -> Rule | None:
    """The rule of that name or alias."""
    return next((r for r in rules() if name == r.name or name in r.aliases), None)


def named_like(name: str, wanted: str) -> str:
    """The ``wanted`` name of a rule, if that is one and cuts every text as rule ``name`` does."""
    first, second = by_name(name), by_name(wanted)
    if first is None or second is None:
        return name
    alike = (first.steps, first.ignore_merges) == (second.steps, second.ignore_merges)
    return wanted if alike else name


def by_structure(normalizer: str, steps: tuple[str, ...], *, ignore_merges: bool) -> Rule | None:
    """The rule that cuts text in this way."""
    return next(
        (
            r
            for r in rules()
            if normalizer in r.normalizers and steps == r.steps and ignore_merges == r.ignore_merges
        ),
        None,
    )


def known_names() -> tuple[str, ...]:
    """Names and aliases of all rules."""
    return tuple(sorted(n for r in rules() for n in (r.name, *r.aliases)))


def named_rule(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """A tokenizer that does not say how it cuts text, with the rule of that name.

    Raises UsageError for a name that is not known, or where nothing is left to say.
    """
    if tokenizer.kind != "bpe":
        raise UsageError("--pre makes no sense for a SentencePiece tokenizer")
    if tokenizer.definition is not None:
        raise UsageError("--pre makes no sense where a tokenizer.json says how text is cut")
    rule = by_name(name)
    if rule is None:
        raise UsageError(
            f"--pre: there is no description of a pre-tokenizer {name!r:.60}; there is one of "
            f"{', '.join(known_names())}"
        )
    return replace(tokenizer, rule=rule.name, rule_problem="")
