"""Intervals: they cover what they claim to, and documents are what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from zenconvert.verification import intervals
from zenconvert.verification.drift import TO_MEDIAN, Figures, Scores, summarise
from zenconvert.verification.intervals import interval, resample, weighted_quantiles
from zenconvert.verification.metrics import TokenScores

ONE_BYTE = np.ones(8, dtype=np.int32)


def scores_of(kl: np.ndarray) -> TokenScores:
    """Token scores with this KL divergence and nothing else of interest."""
    zeros = np.zeros(len(kl))
    tops = zeros.astype(np.int32)
    return TokenScores(tops, zeros + 1, zeros + 1, kl, tops, tops, zeros, zeros)


def documents(random: np.random.Generator, count: int, language: str = "en") -> Scores:
    """Documents whose tokens depend on each other; the mean of everything is 1."""
    scores = Scores(language)
    for number in range(count):
        level = random.gamma(4, 1 / 4)
        scores.add(f"d{number}", scores_of(random.gamma(2, level / 2, 30)))
    return scores


@pytest.mark.parametrize(("count", "least"), [(4, 0.85), (10, 0.89), (40, 0.91)])
def test_the_true_mean_is_inside_as_often_as_claimed(count: int, least: float) -> None:
    """Few skewed documents are hard; plain percentiles would cover about 0.75, 0.87 and 0.93."""
    random, trials, inside = np.random.default_rng(3), 400, 0
    for trial in range(trials):
        means = np.array([random.gamma(4, 1 / 4) for _ in range(count)])
        replicates = resample(count, f"trial {trial}") @ means / count
        found = interval(replicates, count)
        assert found is not None
        inside += found[0] <= 1 <= found[1]
    assert least <= inside / trials <= 0.985


def test_tokens_of_a_document_do_not_count_as_independent() -> None:
    """The same tokens in 20 documents or spread over 600 give very different intervals."""
    random = np.random.default_rng(0)
    grouped = documents(random, 20)
    spread = Scores("en")
    for index, value in enumerate(np.concatenate([p.kl for p in grouped.parts])):
        spread.add(f"t{index}", scores_of(np.array([value])))
    widths = []
    for scores in (grouped, spread):
        low, high = summarise([scores], ONE_BYTE).overall.intervals["kl.mean"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_students_quantiles_are_those_of_tables() -> None:
    for freedom, expected in ((4, 2.776), (9, 2.262), (29, 2.045), (99, 1.984)):
        assert intervals._student(0.975, freedom) == pytest.approx(expected, abs=4e-3)


def test_two_blocks_give_the_whole_range_and_one_gives_none() -> None:
    replicates = np.array([1.0, 2.0, 5.0, 9.0])
    assert interval(replicates, 2) == (1.0, 9.0)
    assert interval(replicates, 1) is None
    assert interval(np.array([1.0, np.nan]), 5) is None


def test_weighted_quantiles_are_those_of_repeated_values() -> None:
    random = np.random.default_rng(1)
    shares = np.array([0.0, 0.001, 0.25, 0.5, 0.9, 0.999, 1.0])
    for size in (1, 2, 17, 400):
        values = np.sort(random.normal(size=size))
        weights = random.integers(0, 4, size).astype(np.int32)
        weights[0] += 1
        found = weighted_quantiles(values, weights, shares)
        np.testing.assert_allclose(found, np.quantile(np.repeat(values, weights), shares), 1e-12)
    assert np.isnan(weighted_quantiles(values, np.zeros(size, np.int32), shares)).all()


def test_an_interval_of_one_value_is_that_value() -> None:
    """Documents of the same text: every resample has the same figure, down to the last bit."""
    values = np.random.default_rng(5).uniform(1, 10, 300)
    for blocks in (2, 3, 4, 7):
        for value in values:
            assert interval(np.full(1000, value), blocks) == (value, value)
            near = np.array([value] * 500 + [np.nextafter(value, 99)] * 500)
            low, high = interval(near, blocks) or (1, 0)
            assert low <= high


def test_draws_are_seeded_by_language_alone() -> None:
    np.testing.assert_array_equal(resample(9, "de"), resample(9, "de"))
    assert (resample(9, "de") != resample(9, "fr")).any()
    assert (resample(9, "de").sum(axis=1) == 9).all()


def test_overall_draws_within_each_language() -> None:
    random = np.random.default_rng(2)
    many, few = documents(random, 12, "en"), documents(random, 3, "ko")
    figures = Figures([many, few], ONE_BYTE)
    drawn = figures.draws()
    assert (drawn[:, :12].sum(axis=1) == 12).all()
    assert (drawn[:, 12:].sum(axis=1) == 3).all()
    together = summarise([few, many], ONE_BYTE)
    alone = summarise([few], ONE_BYTE)
    ours = together.languages["ko"].intervals
    assert {k: v for k, v in ours.items() if k != TO_MEDIAN} == alone.overall.intervals
    lonely = documents(random, 1, "vi")
    drawn = Figures([many, lonely], ONE_BYTE).draws()
    assert (drawn[:, 12] == 0).any(), "a single document in a language counts as chance too"


def test_a_single_document_is_drawn_by_windows() -> None:
    scores = Scores("und")
    for _ in range(6):
        scores.add("book", scores_of(np.arange(5.0)))
    assert [name for name, _ in scores.blocks()] == [f"book#{n}" for n in range(1, 7)]
    scores.add("other", scores_of(np.arange(3.0)))
    assert scores.blocks() == [("book", [0, 1, 2, 3, 4, 5]), ("other", [6])]
    alone = Scores("und", ["x"], [scores_of(np.arange(5.0))])
    assert summarise([alone], ONE_BYTE).overall.intervals == {}


def test_a_language_is_compared_with_the_median_one() -> None:
    random = np.random.default_rng(4)
    languages = []
    for code, factor in (("ar", 1.0), ("de", 1.1), ("en", 0.9), ("ja", 4.0)):
        scores = Scores(code)
        for number in range(10):
            scores.add(f"{code}{number}", scores_of(factor * random.gamma(9, 1 / 9, 50)))
        languages.append(scores)
    found = summarise(languages, ONE_BYTE).languages
    assert found["ja"].figures[TO_MEDIAN] == pytest.approx(4 / 1.05, rel=0.1)
    low, high = found["ja"].intervals[TO_MEDIAN]
    assert 3 < low < found["ja"].figures[TO_MEDIAN] < high < 5
    still = [Scores(c, ["a", "b"], [scores_of(np.zeros(3))] * 2) for c in ("de", "en")]
    assert summarise(still, ONE_BYTE).languages["en"].figures[TO_MEDIAN] == 1
