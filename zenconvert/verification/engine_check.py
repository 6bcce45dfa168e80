"""What a runtime must show beside small numbers: the written file works in it.

In all bundled languages: its own tokenizer gives the token ids of the reference's, and generation
by the most probable token gives the same tokens twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.samples import load_bundled
from zenconvert.texts.windows import render

PROMPT: Final = 16
GENERATED: Final = 16
"""Tokens read and generated in each language, where the model's context takes both."""


class Encoder(Protocol):
    """Text → token ids, special tokens recognised."""

    def encode(self, text: str) -> list[int]: ...


class Generator(Protocol):
    """Continues token ids, always with the most probable token."""

    def generate(self, ids: Sequence[int], count: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Text:
    """One rendered evaluation text and the reference's token ids."""

    sample: str
    language: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A text that another tokenizer cuts differently."""

    language: str
    sample: str
    at: int
    """Index of the first token that differs."""
    expected: tuple[int, ...]
    """The reference's tokens from there, a few, and the artifact's."""
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """What followed a prompt in one language."""

    language: str
    prompt: str
    text: str
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """The result; ``generations`` is empty for an engine that does not generate."""

    texts: int
    languages: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    generations: tuple[Generation, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that does not hold, in words."""
        cut = sorted({m.language for m in self.mismatches})
        loose = [g.language for g in self.generations if not g.deterministic]
        found = []
        if cut:
            found.append(
                f"its tokenizer cuts {len(self.mismatches)} of {self.texts} texts differently "
                f"({', '.join(cut)})"
            )
        if loose:
            found.append(f"generation is not deterministic ({', '.join(loose)})")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "texts": self.texts,
            "languages": list(self.languages),
            "mismatches": [
                {**_fields(m), "expected": list(m.expected), "found": list(m.found)}
                for m in self.mismatches
            ],
            "generations": [_fields(g) for g in self.generations],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Proof:
        """The inverse of :meth:`as_dict`. Raises KeyError or TypeError."""
        return cls(
            texts=int(value["texts"]),
            languages=tuple(value["languages"]),
            mismatches=tuple(
                Mismatch(**{**m, "expected": tuple(m["expected"]), "found": tuple(m["found"])})
                for m in value["mismatches"]
            ),
            generations=tuple(Generation(**g) for g in value["generations"]),
        )


def _fields(value: Mismatch | Generation) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def texts_of(reference: Checkpoint) -> list[Text]:
    """The bundled evaluation texts as the reference's tokenizer cuts them."""
    from zenconvert.formats.hf.tokenizer import TextEncoder

    tokenizer = reference.tokenizer
    encoder = TextEncoder(tokenizer)
    special = {f"{role}_token": tokenizer.tokens[i] for role, i in tokenizer.special.items()}
    found = []
    for sample in load_bundled("evaluation"):
        text = render(sample, tokenizer.chat_template, special)
        found.append(Text(sample.id, sample.language, text, tuple(encoder.encode(text))))
    return found


def prove_tokens(encoder: Encoder, texts: Sequence[Text]) -> Proof:
    """Compare token ids on every text."""
    mismatches = []
    for text in texts:
        found = tuple(encoder.encode(text.text))
        if found != text.ids:
            at = _first_difference(found, text.ids)
            few = slice(at, at + 8)
            mismatches.append(Mismatch(text.language, text.sample, at, text.ids[few], found[few]))
    languages = tuple(dict.fromkeys(text.language for text in texts))
    return Proof(len(texts), languages, tuple(mismatches))


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def generation_lengths(context: int, prefix: int) -> tuple[int, int]:
    """Tokens of a text that are read, and generated, where a model takes ``context`` tokens and
    ``prefix`` of them begin every sequence."""
    room = max(0, context - prefix)
    generated = min(GENERATED, room // 2)
    return min(PROMPT, room - generated), generated


def prove_generation(
    engine: Generator,
    texts: Sequence[Text],
    prefix: Sequence[int],
    tokens: Sequence[bytes],
    context: int,
) -> tuple[Generation, ...]:
    """Generate twice after the first words of each language's first text.

    ``prefix`` is what begins every sequence, ``tokens`` the bytes of every token; what is read and
    generated fits into ``context`` tokens. Nothing is generated where one has no room.
    """
    read, count = generation_lengths(context, len(prefix))
    if not count:
        return ()
    first: dict[str, Text] = {}
    for text in texts:
        first.setdefault(text.language, text)

    def words(ids: Sequence[int]) -> str:
        return b"".join(tokens[i] for i in ids).decode("utf-8", "replace")

    found = []
    for language, text in first.items():
        prompt = [*prefix, *text.ids[:read]]
        once, again = (engine.generate(prompt, count) for _ in range(2))
        found.append(Generation(language, words(prompt), words(once), once == again))
    return tuple(found)
