"""Drift against plain float64 formulas of torch, at random and at extreme logits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from zenconvert.verification.drift import Drift, Scores, Summary, summarise
from zenconvert.verification.metrics import TokenScores, concatenate, score

DP = {
    "p001": 1, "p01": 10, "p05": 50, "p25": 250, "median": 500, "p75": 750, "p95": 950,
    "p99": 990, "p999": 999,
}  # fmt: skip
Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


@pytest.fixture
def logits() -> tuple[Logits, Logits, Tokens]:
    """Reference, candidate near it, and the tokens that followed."""
    random = np.random.default_rng(7)
    reference = random.normal(0, 4, (1500, 97)).astype(np.float32)
    candidate = (reference + random.normal(0, 0.7, reference.shape)).astype(np.float32)
    return reference, candidate, random.integers(0, 97, 1500)


ONE_BYTE = np.ones(97, dtype=np.int32)


def drift_of(*parts: TokenScores) -> Drift:
    """As windows of one document."""
    scores = Scores("und", ["document"] * len(parts), list(parts))
    return summarise([scores], ONE_BYTE).overall


def log_probabilities(logits: Logits) -> torch.Tensor:
    return torch.log_softmax(torch.from_numpy(logits).double(), dim=1)


def test_all_numbers_are_those_of_torch(logits: tuple[Logits, Logits, Tokens]) -> None:
    reference, candidate, tokens = logits
    log_p, log_q = log_probabilities(reference), log_probabilities(candidate)
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
    at = torch.linspace(0, 1, 1001, dtype=torch.float64)
    quantiles = torch.quantile(kl, at)
    followed = torch.from_numpy(tokens)
    reference_nll = functional.nll_loss(log_p, followed).item()
    candidate_nll = functional.nll_loss(log_q, followed).item()
    rows = torch.arange(1500)
    dp = log_q.exp()[rows, followed] - log_p.exp()[rows, followed]
    dp_quantiles = torch.quantile(dp, at)
    first, other_first = log_p.argmax(1), log_q.argmax(1)
    expected = {
        "perplexity.reference": math.exp(reference_nll),
        "perplexity.candidate": math.exp(candidate_nll),
        "perplexity.ratio": math.exp(candidate_nll - reference_nll),
        "bits_per_byte.reference": reference_nll / math.log(2) / 3,
        "bits_per_byte.candidate": candidate_nll / math.log(2) / 3,
        "kl.mean": functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item(),
        "kl.median": quantiles[500].item(),
        "kl.p90": quantiles[900].item(),
        "kl.p95": quantiles[950].item(),
        "kl.p99": quantiles[990].item(),
        "kl.p999": quantiles[999].item(),
        "kl.max": kl.max().item(),
        "top1": (first == other_first).double().mean().item(),
        "flips.share": (first != other_first).double().mean().item(),
        "flips.lost": ((first == followed) & (other_first != followed)).double().mean().item(),
        "flips.gained": ((first != followed) & (other_first == followed)).double().mean().item(),
        "dp.mean": dp.mean().item(),
        "dp.rms": dp.square().mean().sqrt().item(),
        "dp.min": dp.min().item(),
        **{f"dp.{name}": dp_quantiles[n].item() for name, n in DP.items()},
        "dp.max": dp.max().item(),
    }
    scores = Scores("und", ["document"], [score(reference, candidate, tokens)])
    found = summarise([scores], np.full(97, 3, dtype=np.int32)).overall
    assert 0.3 < expected["top1"] < 0.95
    kl_means = [expected[f"kl.{name}"] for name in ("median", "mean", "p99", "p999", "max")]
    assert 0 < kl_means[0] < kl_means[1] < kl_means[2] < kl_means[3] < kl_means[4]
    assert found.figures == pytest.approx(expected, rel=1e-9)
    assert (found.tokens, found.bytes) == (1500, 4500)


def test_the_divergence_is_taken_from_the_reference() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25]])).astype(np.float32)
    candidate = np.log(np.array([[0.25, 0.25, 0.5]])).astype(np.float32) + np.float32(3)
    found = score(reference, candidate, np.array([2]))
    assert found.kl[0] == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert found.reference_nll[0] == pytest.approx(math.log(4), rel=1e-6)
    assert found.candidate_nll[0] == pytest.approx(math.log(2), rel=1e-6)
    assert not found.same_top[0]
    skewed = np.log(np.array([[0.8, 0.1, 0.1]])).astype(np.float32)
    there, back = score(reference, skewed, np.array([0])), score(skewed, reference, np.array([0]))
    assert there.kl[0] == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(2.5), rel=1e-6)
    assert back.kl[0] == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4), rel=1e-6)


def test_equal_logits_have_no_drift(logits: tuple[Logits, Logits, Tokens]) -> None:
    reference, _, tokens = logits
    found = drift_of(score(reference, reference.copy(), tokens))
    assert {value for key, value in found.figures.items() if key.startswith("kl.")} == {0}
    assert found.perplexity_ratio == found.top1 == 1


def test_a_constant_added_to_all_logits_is_no_drift(logits: tuple[Logits, Logits, Tokens]) -> None:
    reference, _, tokens = logits
    found = drift_of(score(reference, reference + np.float32(64), tokens))
    assert found.kl_max < 1e-9
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-5)


def one_hot(*hot: int) -> Logits:
    """Rows of -1e4 with 1e4 at the given columns."""
    rows = np.full((len(hot), 50), -1e4, dtype=np.float32)
    rows[range(len(hot)), hot] = 1e4
    return rows


def test_one_hot_logits_stay_finite() -> None:
    flat = np.zeros((1, 50), dtype=np.float32)
    cases = (
        (one_hot(3), one_hot(3), 0.0),
        (one_hot(3), one_hot(4), 2e4),
        (one_hot(3), flat, math.log(50)),
        (flat, one_hot(3), 2e4 * 49 / 50 - math.log(50)),
    )
    for reference, candidate, expected in cases:
        found = score(reference, candidate, np.array([3]))
        assert found.kl[0] == pytest.approx(expected, rel=1e-12)
        assert np.isfinite([*found.reference_nll, *found.candidate_nll]).all()


def test_extreme_logits_are_scored_as_by_torch() -> None:
    random = np.random.default_rng(1)
    reference, candidate = random.choice([-1e4, -30, 0, 30, 1e4], (2, 200, 50)).astype(np.float32)
    tokens = random.integers(0, 50, 200)
    found = score(reference, candidate, tokens)
    log_p, log_q = log_probabilities(reference), log_probabilities(candidate)
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
    assert np.isfinite(found.kl).all()
    assert (found.kl > -1e-9).all()
    np.testing.assert_allclose(found.kl, kl.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(
        found.candidate_nll, functional.nll_loss(log_q, torch.from_numpy(tokens), reduction="none")
    )


def test_the_largest_float32_logits_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    reference = np.array([[largest, -largest, 0]], dtype=np.float32)
    found = score(reference, -reference, np.array([0]))
    assert found.kl[0] == pytest.approx(2 * float(largest))
    assert found.reference_nll[0] == 0


def test_tokens_ruled_out_by_both_cost_nothing() -> None:
    ruled_out = np.array([[1.0, 2.0, -np.inf]], dtype=np.float32)
    only_here = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    assert score(ruled_out, ruled_out, np.array([0])).kl[0] == 0
    lost = math.log1p(math.exp(3) / (math.exp(1) + math.exp(2)))
    assert score(ruled_out, only_here, np.array([0])).kl[0] == pytest.approx(lost)
    assert score(only_here, ruled_out, np.array([0])).kl[0] == math.inf


@pytest.mark.parametrize("size", [1, 7, 64, 1499])
def test_scoring_in_batches_changes_nothing(
    size: int, logits: tuple[Logits, Logits, Tokens]
) -> None:
    reference, candidate, tokens = logits
    parts = [slice(begin, begin + size) for begin in range(0, len(tokens), size)]
    scores = concatenate([score(reference[p], candidate[p], tokens[p]) for p in parts])
    whole = score(reference, candidate, tokens)
    assert drift_of(scores) == drift_of(whole)
    for name, column in scores.as_arrays().items():
        np.testing.assert_array_equal(column, whole.as_arrays()[name], err_msg=name)


def test_every_token_counts_the_same(logits: tuple[Logits, Logits, Tokens]) -> None:
    """Perplexity is the exponential of the mean over tokens, not a mean over parts."""
    reference, candidate, tokens = logits
    parts = [
        score(reference[part], candidate[part], tokens[part])
        for part in (slice(0, 3), slice(3, 1000))
    ]
    found, few, many = drift_of(*parts), drift_of(parts[0]), drift_of(parts[1])
    mean = (
        3 * math.log(few.candidate_perplexity) + 997 * math.log(many.candidate_perplexity)
    ) / 1e3
    assert found.candidate_perplexity == pytest.approx(math.exp(mean), rel=1e-12)
    assert found.kl_mean == pytest.approx((3 * few.kl_mean + 997 * many.kl_mean) / 1e3, rel=1e-12)


def test_the_worst_language_has_the_largest_mean_divergence() -> None:
    calm = Drift(
        100,
        300,
        1,
        {
            "perplexity.reference": 9.0,
            "perplexity.candidate": 9.9,
            "kl.mean": 0.01,
            "kl.median": 0.005,
            "kl.p99": 0.1,
            "kl.max": 9.0,
            "top1": 0.9,
        },
    )

    def but(**figures: float) -> Drift:
        changed = {name.replace("_", "."): value for name, value in figures.items()}
        return replace(calm, figures={**calm.figures, **changed})

    languages = {
        "en": calm,  # largest KL of one token
        "fr": but(perplexity_candidate=30.0),  # largest ratio
        "ko": but(kl_mean=0.02, kl_max=0.6),
        "vi": but(top1=0.1, kl_median=0.008, kl_p99=0.4),
    }
    summary = Summary(calm, languages)
    assert summary.worst_language == "ko"
    assert summary.as_dict()["worst_language"] == "ko"
