"""Drift of a candidate from a reference, token by token, over the full vocabulary.

Logits come in position blocks; sums run in float64, and no more than a block of log-probabilities
is held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per predicted token, float64[n] each."""

    reference_nll: NDArray[np.float64]
    """-ln p(token) under the reference, nats."""
    candidate_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    """KL(reference ‖ candidate) over the whole vocabulary, nats."""
    same_top: NDArray[np.bool_]
    """Both put the same token first."""


def score(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], tokens: NDArray[np.int64]
) -> TokenScores:
    """Score logits float32[n, vocab] of both models for the ``tokens`` int64[n] that followed."""
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    rows = np.arange(len(tokens))
    # p = 0 contributes 0 even where log q is -inf
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - log_q)
    return TokenScores(
        reference_nll=-log_p[rows, tokens],
        candidate_nll=-log_q[rows, tokens],
        kl=np.where(np.isnan(terms) & np.isneginf(log_p), 0.0, terms).sum(axis=1),
        same_top=log_p.argmax(axis=1) == log_q.argmax(axis=1),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


@dataclass(frozen=True, slots=True)
class Drift:
    """Summary over tokens."""

    tokens: int
    reference_perplexity: float
    candidate_perplexity: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1: float
    """Share of tokens with the same first choice."""

    @property
    def perplexity_ratio(self) -> float:
        """Candidate over reference."""
        return self.candidate_perplexity / self.reference_perplexity

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "tokens": self.tokens,
            "perplexity": {
                "reference": self.reference_perplexity,
                "candidate": self.candidate_perplexity,
                "ratio": self.perplexity_ratio,
            },
            "kl": {
                "mean": self.kl_mean,
                "median": self.kl_median,
                "p99": self.kl_p99,
                "p999": self.kl_p999,
                "max": self.kl_max,
            },
            "top1": self.top1,
        }


@dataclass(slots=True)
class Scores:
    """Collects token scores; 25 bytes a token."""

    parts: list[TokenScores] = field(default_factory=list)

    def add(self, scores: TokenScores) -> None:
        """Add the scores of one block."""
        self.parts.append(scores)

    def drift(self) -> Drift:
        """Summarise everything added (at least one token)."""
        kl = np.concatenate([p.kl for p in self.parts])
        median, p99, p999 = np.quantile(kl, (0.5, 0.99, 0.999))
        return Drift(
            tokens=len(kl),
            reference_perplexity=_perplexity([p.reference_nll for p in self.parts]),
            candidate_perplexity=_perplexity([p.candidate_nll for p in self.parts]),
            kl_mean=float(kl.mean()),
            kl_median=float(median),
            kl_p99=float(p99),
            kl_p999=float(p999),
            kl_max=float(kl.max()),
            top1=float(np.concatenate([p.same_top for p in self.parts]).mean()),
        )


def _perplexity(nll: list[NDArray[np.float64]]) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.concatenate(nll).mean()))
