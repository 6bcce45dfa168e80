"""Pre-tokenizer rules, known by name and by structure (``pretokenizers.toml``)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

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


@cache
def rules() -> tuple[Rule, ...]:
    """Every known rule."""
    text = (resources.files("zenconvert") / "pretokenizers.toml").read_text(encoding="utf-8")
    return tuple(
        Rule(
            name=row["name"],
            normalizers=tuple(row["normalizers"]),
            steps=tuple(row["steps"]),
            ignore_merges=row.get("ignore_merges", False),
            aliases=tuple(row.get("aliases", ())),
        )
        for row in tomllib.loads(text)["rule"]
    )


def by_name(name: str) -> Rule | None:
    """The rule of that name or alias."""
    return next((r for r in rules() if name == r.name or name in r.aliases), None)


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
