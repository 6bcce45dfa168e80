"""Balanced windows: budgets, seeds, weights, and what the coverage says of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from zenconvert.errors import UsageError
from zenconvert.texts.coverage import expert_coverage
from zenconvert.texts.samples import Sample
from zenconvert.texts.selection import select
from zenconvert.texts.windows import Cutter, Window

CONTEXT = 10


class Characters:
    """One token per character: its code point."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]


CUTTER = Cutter(Characters(), CONTEXT, None, {}, None)


def documents(language: str, *sizes: int) -> list[Sample]:
    """Every document has tokens of its own."""
    return [
        Sample(
            f"{language}-{n}",
            language,
            "text",
            "".join(chr(100 * (n + 1) + i) for i in range(s)),
            None,
        )
        for n, s in enumerate(sizes)
    ]


@pytest.mark.parametrize("number", range(60))
def test_a_language_gives_its_tokens_and_nothing_else(number: int) -> None:
    draw = random.Random(number)
    sizes = [draw.randint(2, 45) for _ in range(draw.randint(1, 8))]
    budget, seed = draw.randint(2, 120), draw.randint(0, 5)
    samples = documents("en", *sizes) + documents("zh", 30)
    chosen = select(samples, CUTTER.cut, vocabulary=1000, tokens_per_language=budget, seed=seed)
    whole = {s.id: [i for w in CUTTER.cut(s) for i in w.ids] for s in samples}
    english, _ = chosen.coverage
    own = [w for w in chosen.windows if w.language == "en"]
    assert [w.language for w in chosen.windows] == ["en"] * len(own) + ["zh"] * (
        len(chosen.windows) - len(own)
    )
    assert english.tokens == sum(len(w.ids) for w in own) <= budget
    assert english.windows == len(own)
    there = sum(len(ids) for name, ids in whole.items() if name.startswith("en"))
    if there <= budget:
        assert english.tokens == there
        assert english.unused_documents == english.cut_tokens == 0
    else:
        assert english.tokens >= budget - 1  # a single token is no window
    read: dict[str, list[int]] = {}
    for window in own:
        assert 2 <= len(window.ids) <= CONTEXT
        read.setdefault(window.sample, []).extend(window.ids)
    assert all(whole[name][: len(ids)] == ids for name, ids in read.items())
    cut = sum(len(whole[name]) - len(ids) for name, ids in read.items())
    assert english.cut_tokens >= cut
    assert english.documents + english.unused_documents == len(sizes)
    assert list(read) == [name for name in whole if name in read]  # in the samples' order


def test_the_seed_decides_only_where_there_is_a_choice() -> None:
    samples = documents("en", *[20] * 12)

    def digest(seed: int, budget: int | None) -> str:
        return select(
            samples, CUTTER.cut, vocabulary=1000, tokens_per_language=budget, seed=seed
        ).digest

    assert digest(0, None) == digest(1, None) == digest(1, 240)
    assert digest(0, 60) == digest(0, 60)
    assert len({digest(seed, 60) for seed in range(4)}) > 1


def test_the_digest_covers_tokens_languages_and_weights() -> None:
    def digest(samples: list[Sample], **weights: float) -> str:
        return select(samples, CUTTER.cut, vocabulary=1000, weights=weights).digest

    both = documents("en", 20) + documents("zh", 20)
    found = [
        digest(both),
        digest(both, zh=2),
        digest(documents("zh", 20) + documents("en", 20)),
        digest(documents("en", 20) + documents("zh", 22)),
    ]
    assert len(set(found)) == 4


def test_languages_weigh_the_same_whatever_their_tokens() -> None:
    samples = documents("en", 40, 40) + documents("zh", 20)
    chosen = select(samples, CUTTER.cut, vocabulary=1000)
    assert chosen.tokens.tolist() == [80, 20]
    np.testing.assert_allclose(chosen.token_weights * chosen.tokens, [50, 50])
    chosen = select(samples, CUTTER.cut, vocabulary=1000, weights={"zh": 3})
    np.testing.assert_allclose(chosen.token_weights * chosen.tokens, [25, 75])
    chosen = select(samples, CUTTER.cut, vocabulary=1000, weights={"en": 0})
    np.testing.assert_allclose(chosen.token_weights, [0, 5])


@pytest.mark.parametrize(
    "weights", [{"en": -1.0}, {"en": float("nan")}, {"en": float("inf")}, {"en": 0.0}, {"xx": 1.0}]
)
def test_weights_that_make_no_sense_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"0 or more|no text in xx"):
        select(documents("en", 20), CUTTER.cut, vocabulary=1000, weights=weights)


def test_languages_need_a_code_and_two_tokens() -> None:
    with pytest.raises(UsageError, match="'ja' hold no two tokens"):
        select(documents("en", 20) + documents("ja", 1), CUTTER.cut, vocabulary=1000)
    for name in ("a b", "x" * 25, "é"):
        with pytest.raises(UsageError, match="no language code"):
            select(documents(name, 20), CUTTER.cut, vocabulary=1000)


def test_coverage_counts_documents_cuts_and_vocabulary() -> None:
    samples = documents("en", 25, 25, 25)
    (found,) = select(samples, CUTTER.cut, vocabulary=100, tokens_per_language=30).coverage
    assert found.as_dict() == {
        "language": "en",
        "tokens": 30,
        "windows": 4,
        "documents": 2,
        "unused_documents": 1,
        "split_documents": 1,
        "cut_tokens": 20,
        "vocabulary": 0.3,
    }


def test_experts_that_were_not_reached_are_named() -> None:
    routed = {0: np.array([[3, 0, 1], [0, 0, 2]]), 4: np.array([[1, 1, 1], [0, 5, 0]])}
    found = expert_coverage(routed, ["en", "zh"])
    assert found.experts == 6
    assert found.never == ("0.1",)
    assert found.by_language == {"en": ("0.1",), "zh": ("0.0", "0.1", "4.0", "4.2")}


def test_a_window_is_a_run_of_one_document() -> None:
    assert CUTTER.cut(documents("en", 12)[0]) == [
        Window("en-0", "en", tuple(range(100, 110))),
        Window("en-0", "en", (110, 111)),
    ]
