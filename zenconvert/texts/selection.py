"""Which windows a calibration reads, and how much each language weighs.

Every language gives at most the tokens asked for, from documents drawn by a seed, and weighs by its
language weight whatever its number of tokens: balanced by default.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import UsageError
from zenconvert.texts.coverage import LanguageCoverage, language_coverage
from zenconvert.texts.samples import Sample
from zenconvert.texts.windows import SHORTEST, Window

_CODE: Final = re.compile(r"[A-Za-z0-9_\-]{1,24}")  # fits into the names of a GGUF file


@dataclass(frozen=True)
class Selection:
    """The windows of a calibration, its languages and their weights."""

    windows: tuple[Window, ...]
    languages: tuple[str, ...]
    weights: tuple[float, ...]
    """One a language, not negative, not all 0; only their ratios matter."""
    coverage: tuple[LanguageCoverage, ...]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of every language, int64[languages]."""
        return np.array([part.tokens for part in self.coverage], dtype=np.int64)

    @property
    def token_weights(self) -> NDArray[np.float64]:
        """What a token of every language counts, float64[languages]; 1 on average."""
        return token_weights(self.weights, self.tokens)

    def drawn(self, tokens: int, seed: int) -> Selection:
        """At most so many tokens of every language, from windows drawn by a seed; the last one is
        cut to fit. They stand in the order that they have here."""
        chosen: list[tuple[int, Window]] = []
        coverage = []
        for part in self.coverage:
            own = [n for n, w in enumerate(self.windows) if w.language == part.language]
            random.Random(f"{seed}:{part.language}").shuffle(own)
            read = list(zip(own, _fit([self.windows[n] for n in own], tokens), strict=False))
            count = sum(len(window.ids) for _, window in read)
            coverage.append(replace(part, tokens=count, windows=len(read)))
            chosen += read
        windows = tuple(window for _, window in sorted(chosen, key=lambda pair: pair[0]))
        return replace(self, windows=windows, coverage=tuple(coverage))

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, languages and weights."""
        found = hashlib.sha256(json.dumps([self.languages, self.weights]).encode())
        for window in self.windows:
            found.update(f"\0{window.language}\0{len(window.ids)}\0".encode())
            found.update(np.array(window.ids, dtype="<i8").tobytes())
        return found.hexdigest()


def token_weights(weights: Sequence[float], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """c_l, float64[languages]: w/W · T/t for weight w, of W in all, and t tokens, of T in all."""
    shares = np.array(weights, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        counts: NDArray[np.float64] = shares / shares.sum() * tokens.sum() / tokens
    return counts


def select(
    samples: Sequence[Sample],
    cut: Callable[[Sample], list[Window]],
    *,
    vocabulary: int,
    weights: Mapping[str, float] | None = None,
    tokens_per_language: int | None = None,
    seed: int = 0,
) -> Selection:
    """Choose windows; ``cut`` turns a document into its own.

    Documents are drawn in an order given by the seed until a language has its tokens; the last
    window is cut to fit. The chosen windows stand in the order of ``samples``. ``weights`` are 1
    for languages that it does not name. Raises UsageError for weights that make no sense or when a
    language has no two tokens in a row.
    """
    languages = tuple(dict.fromkeys(sample.language for sample in samples))
    if odd := [code for code in languages if not _CODE.fullmatch(code)]:
        raise UsageError(
            f"{odd[0]!r} is no language code; expected at most 24 letters, digits, - and _"
        )
    chosen: list[Window] = []
    coverage = []
    for language in languages:
        documents = [sample for sample in samples if sample.language == language]
        order = list(range(len(documents)))
        random.Random(f"{seed}:{language}").shuffle(order)
        read, cut_off = _draw([documents[n] for n in order], cut, tokens_per_language)
        if not any(read):
            raise UsageError(f"the texts in {language!r} hold no two tokens in a row")
        chosen += [w for _, document in sorted(zip(order, read, strict=False)) for w in document]
        unused = len(documents) - len(read)
        coverage.append(
            language_coverage(language, read, unused=unused, cut=cut_off, vocabulary=vocabulary)
        )
    return Selection(tuple(chosen), languages, _weights(languages, weights or {}), tuple(coverage))


def _draw(
    documents: Sequence[Sample], cut: Callable[[Sample], list[Window]], most: int | None
) -> tuple[list[list[Window]], int]:
    """The windows of each document until there are enough tokens, and how many were cut off."""
    read: list[list[Window]] = []
    room = sys.maxsize if most is None else most
    cut_off = 0
    for document in documents:
        if room < SHORTEST:
            break
        windows = cut(document)
        kept = _fit(windows, room)
        read.append(kept)
        taken = sum(len(window.ids) for window in kept)
        cut_off += sum(len(window.ids) for window in windows) - taken
        room -= taken
    return read, cut_off


def _fit(windows: Sequence[Window], room: int) -> list[Window]:
    """As many windows as there is room for, the last of them cut."""
    kept = []
    for window in windows:
        ids = window.ids[:room]
        if len(ids) >= SHORTEST:
            kept.append(replace(window, ids=ids))
            room -= len(ids)
    return kept


def _weights(languages: Sequence[str], given: Mapping[str, float]) -> tuple[float, ...]:
    if unknown := sorted(given.keys() - set(languages)):
        raise UsageError(
            f"there is no text in {', '.join(unknown)} to weigh; there is {', '.join(languages)}"
        )
    weights = tuple(float(given.get(language, 1)) for language in languages)
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UsageError(f"language weights should be 0 or more, and one more: {dict(given)}")
    return weights
