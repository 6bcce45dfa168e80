"""Token scores → figures with intervals, overall and per language.

A block of the bootstrap is a document; where a language has only one, a window of it. Overall
figures draw within each language, whose share is part of the design and not of chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.verification.intervals import Interval, interval, resample, weighted_quantiles
from zenconvert.verification.metrics import TokenScores, concatenate

Floats = NDArray[np.float64]

_KL_SHARES: Final = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
_DP_SHARES: Final = {
    "p001": 0.001, "p01": 0.01, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75,
    "p95": 0.95, "p99": 0.99, "p999": 0.999,
}  # fmt: skip
TO_MEDIAN: Final = "kl.to_median"
"""A language's mean KL divergence over the median of all languages'."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Figures of one body of text; ``a.b`` names the figure ``b`` of the group ``a``.

    ``perplexity.{reference,candidate,ratio}`` per token · ``bits_per_byte.{reference,candidate}``
    of UTF-8 text · ``kl.{mean,median,p90,p95,p99,p999,max}`` in nats · ``top1``, share of positions
    with the same first choice · ``flips.{share,lost,gained}``, share of positions whose first
    choice changed, and of those where it was right before or is right now ·
    ``dp.{mean,rms,min,p001 … p999,max}``, change of the probability of the token that followed ·
    of a language among others, ``kl.to_median``.
    """

    tokens: int
    bytes: int
    """UTF-8 bytes of the predicted text."""
    blocks: int
    """What the bootstrap draws: documents, or the windows of a single one."""
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 %, by figure; absent where one block is all there is. The interval of a maximum cannot
    reach beyond the largest value seen."""

    @property
    def reference_perplexity(self) -> float:
        """Per token."""
        return self.figures["perplexity.reference"]

    @property
    def candidate_perplexity(self) -> float:
        """Per token."""
        return self.figures["perplexity.candidate"]

    @property
    def perplexity_ratio(self) -> float:
        """Candidate over reference."""
        return self.figures["perplexity.ratio"]

    @property
    def kl_mean(self) -> float:
        """Mean KL divergence, nats."""
        return self.figures["kl.mean"]

    @property
    def kl_p99(self) -> float:
        """99th percentile of the KL divergence, nats."""
        return self.figures["kl.p99"]

    @property
    def kl_max(self) -> float:
        """Largest KL divergence, nats."""
        return self.figures["kl.max"]

    @property
    def top1(self) -> float:
        """Share of positions with the same first choice."""
        return self.figures["top1"]

    def as_dict(self) -> dict[str, Any]:
        """JSON form; a number that is not finite is null."""
        counts = {"tokens": self.tokens, "bytes": self.bytes, "blocks": self.blocks}
        figures = {name: _finite(value) for name, value in self.figures.items()}
        intervals = {n: [_finite(low), _finite(high)] for n, (low, high) in self.intervals.items()}
        return {**counts, **_nested(figures), "intervals": _nested(intervals)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Drift:
        """The inverse of :meth:`as_dict`; null becomes infinity. Raises KeyError or TypeError."""
        rest = {k: v for k, v in value.items() if k not in {"tokens", "bytes", "blocks"}}
        intervals = _flat(rest.pop("intervals"))
        return cls(
            tokens=int(value["tokens"]),
            bytes=int(value["bytes"]),
            blocks=int(value["blocks"]),
            figures={name: _number(number) for name, number in _flat(rest).items()},
            intervals={name: (_number(a), _number(b)) for name, (a, b) in intervals.items()},
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: Any) -> float:
    return float("inf") if value is None else float(value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, value in flat.items():
        group, _, name = path.rpartition(".")
        (result.setdefault(group, {}) if group else result)[name] = value
    return result


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for group, value in nested.items():
        if isinstance(value, Mapping):
            result |= {f"{group}.{name}": inner for name, inner in value.items()}
        else:
            result[group] = value
    return result


@dataclass(slots=True)
class Scores:
    """Collects the token scores of one language, window by window."""

    language: str
    samples: list[str] = field(default_factory=list)
    parts: list[TokenScores] = field(default_factory=list)

    def add(self, sample: str, scores: TokenScores) -> None:
        """Add the scores of one window of a document."""
        self.samples.append(sample)
        self.parts.append(scores)

    def blocks(self) -> list[tuple[str, list[int]]]:
        """(name, its windows): the documents, or the windows where there is only one document."""
        by_sample: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            by_sample.setdefault(sample, []).append(index)
        if len(by_sample) > 1:
            return list(by_sample.items())
        return [(f"{name}#{index + 1}", [index]) for index, name in enumerate(self.samples)]


class Figures:
    """Every figure of one body of text, for any weights of its blocks."""

    def __init__(self, languages: Sequence[Scores], byte_lengths: NDArray[np.int32]) -> None:
        parts: list[TokenScores] = []
        owners: list[NDArray[np.int64]] = []
        self.strata: list[tuple[str, int]] = []
        """(language, number of its blocks), in the order of the blocks."""
        count = 0
        for scores in languages:
            blocks = scores.blocks()
            self.strata.append((scores.language, len(blocks)))
            for _, windows in blocks:
                parts += [scores.parts[w] for w in windows]
                owners += [np.full(len(scores.parts[w]), count) for w in windows]
                count += 1
        self.blocks = count
        self.scores = concatenate(parts)
        self.owner = np.concatenate(owners)
        self.sums = self._block_sums(byte_lengths)

    def _block_sums(self, byte_lengths: NDArray[np.int32]) -> dict[str, Floats]:
        s, dp = self.scores, self.scores.dp
        right, still_right = s.reference_top == s.tokens, s.candidate_top == s.tokens
        columns = {
            "tokens": np.ones(len(s)),
            "bytes": byte_lengths[s.tokens],
            "reference_nll": s.reference_nll,
            "candidate_nll": s.candidate_nll,
            "kl": s.kl,
            "same": s.same_top,
            "lost": right & ~still_right,
            "gained": ~right & still_right,
            "dp": dp,
            "dp²": dp**2,
        }
        return {
            name: np.bincount(self.owner, column, self.blocks).astype(np.float64)
            for name, column in columns.items()
        }

    @cached_property
    def _sorted(self) -> dict[str, tuple[Floats, NDArray[np.int64]]]:
        """Ascending values and the block of each."""
        found = {}
        for name, values in (("kl", self.scores.kl), ("dp", self.scores.dp)):
            order = np.argsort(values, kind="stable")
            found[name] = (values[order], self.owner[order])
        return found

    def replicates(self, weights: NDArray[np.int32]) -> dict[str, Floats]:
        """Figure → its value under each row of weights int32[n, blocks], float64[n]."""
        total = {name: weights @ column for name, column in self.sums.items()}
        tokens = total["tokens"]
        with np.errstate(over="ignore", invalid="ignore"):
            reference = np.exp(total["reference_nll"] / tokens)
            candidate = np.exp(total["candidate_nll"] / tokens)
            bits = np.log(2) * total["bytes"]
            found = {
                "perplexity.reference": reference,
                "perplexity.candidate": candidate,
                "perplexity.ratio": candidate / reference,
                "bits_per_byte.reference": total["reference_nll"] / bits,
                "bits_per_byte.candidate": total["candidate_nll"] / bits,
                "kl.mean": total["kl"] / tokens,
            }
        found |= self._tails("kl", _KL_SHARES, weights)
        found["top1"] = total["same"] / tokens
        found["flips.share"] = 1 - found["top1"]
        found |= {f"flips.{name}": total[name] / tokens for name in ("lost", "gained")}
        found["dp.mean"] = total["dp"] / tokens
        found["dp.rms"] = np.sqrt(total["dp²"] / tokens)
        return found | self._tails("dp", _DP_SHARES, weights)

    def _tails(
        self, name: str, shares: Mapping[str, float], weights: NDArray[np.int32]
    ) -> dict[str, Floats]:
        values, owner = self._sorted[name]
        at = np.array([0.0, *shares.values(), 1.0])
        rows = np.array([weighted_quantiles(values, row[owner], at) for row in weights])
        labels = ("min", *shares, "max") if name == "dp" else (None, *shares, "max")
        return {f"{name}.{label}": rows[:, i] for i, label in enumerate(labels) if label}

    def draws(self) -> NDArray[np.int32]:
        """Resamples of the blocks, within each language where each has at least two."""
        if len(self.strata) > 1 and any(count < 2 for _, count in self.strata):
            return resample(self.blocks, "overall")
        return np.hstack([resample(count, language) for language, count in self.strata])

    def drift(self) -> tuple[Drift, Floats]:
        """The figures with intervals, and the resampled mean KL divergence."""
        point = self.replicates(np.ones((1, self.blocks), np.int32))
        drawn = self.replicates(self.draws())
        intervals = {name: interval(values, self.blocks) for name, values in drawn.items()}
        drift = Drift(
            tokens=len(self.scores),
            bytes=int(self.sums["bytes"].sum()),
            blocks=self.blocks,
            figures={name: float(value[0]) for name, value in point.items()},
            intervals={name: found for name, found in intervals.items() if found is not None},
        )
        return drift, drawn["kl.mean"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Drift overall and per language, in the order of the language codes."""

    overall: Drift
    languages: dict[str, Drift]

    @property
    def worst_language(self) -> str:
        """The language with the largest mean KL divergence."""
        return max(self.languages, key=lambda code: self.languages[code].kl_mean)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "worst_language": self.worst_language,
            "overall": self.overall.as_dict(),
            "languages": {code: drift.as_dict() for code, drift in self.languages.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Summary:
        """The inverse of :meth:`as_dict`. Raises KeyError or TypeError."""
        languages = value["languages"].items()
        return cls(
            Drift.from_dict(value["overall"]),
            {code: Drift.from_dict(drift) for code, drift in languages},
        )


def summarise(languages: Sequence[Scores], byte_lengths: NDArray[np.int32]) -> Summary:
    """Figures of everything (at least one token a language) and of each language.

    ``byte_lengths`` int32[vocab] are the UTF-8 bytes of every token.
    """
    ordered = sorted(languages, key=lambda scores: scores.language)
    each = [Figures([scores], byte_lengths) for scores in ordered]
    found = [figures.drift() for figures in each]
    overall, _ = Figures(ordered, byte_lengths).drift() if len(ordered) > 1 else found[0]
    drifts = [drift for drift, _ in found]
    if len(ordered) > 1:
        drifts = _with_ratios(drifts, np.array([replicates for _, replicates in found]))
    codes = [scores.language for scores in ordered]
    return Summary(overall, dict(zip(codes, drifts, strict=True)))


def _with_ratios(drifts: Sequence[Drift], replicates: Floats) -> list[Drift]:
    """Adds ``kl.to_median``; ``replicates`` float64[languages, resamples] of ``kl.mean``."""
    means = np.array([drift.kl_mean for drift in drifts])
    points, drawn = _ratios(means[:, None])[:, 0], _ratios(replicates)
    result = []
    for drift, point, values in zip(drifts, points, drawn, strict=True):
        found = interval(values, drift.blocks)
        intervals = {TO_MEDIAN: found} if found is not None else {}
        result.append(
            Drift(
                drift.tokens,
                drift.bytes,
                drift.blocks,
                {**drift.figures, TO_MEDIAN: float(point)},
                {**drift.intervals, **intervals},
            )
        )
    return result


def _ratios(means: Floats) -> Floats:
    median = np.broadcast_to(np.median(means, axis=0), means.shape)
    nothing = np.where(means > 0, np.inf, 1.0)  # where the median is 0; 0 of 0 is no excess
    return np.divide(means, median, out=nothing, where=median > 0)
