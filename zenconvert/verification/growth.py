"""This release against the last one: how the drift grew, paired document by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zenconvert.verification.intervals import Interval, interval, resample
from zenconvert.verification.report import Document, Report, Run

_SAME_BASELINE = 1e-3  # relative difference of the reference's perplexity on the same tokens


@dataclass(frozen=True, slots=True)
class Growth:
    """Mean KL divergence of a candidate over that of another one, on the same documents."""

    scope: str
    """``overall`` or a language."""
    ratio: float
    interval: Interval
    difference: Interval
    """Of the mean KL divergences, nats."""
    within_noise: bool
    """The difference is no more than the noise floor, either way."""
    problem: str = ""
    """Why the two cannot be compared."""
    anomalous: bool = False
    """The baseline itself has moved."""


def growth(report: Report, run: Run, earlier: Report) -> Iterator[Growth]:
    """Compare a run with the same engine's run of an earlier report, overall and by language."""
    other = next((r for r in earlier.runs if r.engine == run.engine), None)
    problem, anomalous = _problem(report, run, earlier, other)
    if problem or other is None:
        nothing = (float("nan"), float("nan"))
        yield Growth("overall", float("nan"), nothing, nothing, False, problem, anomalous)
        return
    yield paired("overall", run.documents, other.documents, report.noise.summary.overall.kl_mean)
    for code in run.languages:
        floor = report.noise.summary.languages[code].kl_mean
        now, then = ([d for d in r.documents if d.language == code] for r in (run, other))
        yield paired(code, now, then, floor)


def _problem(report: Report, run: Run, earlier: Report, other: Run | None) -> tuple[str, bool]:
    """Why they cannot be compared, and whether that is because the baseline has moved."""
    if report.reference.sha256 != earlier.reference.sha256:
        return "the earlier report has another reference", False
    if report.text.ids_sha256 != earlier.text.ids_sha256:
        return "the earlier report is on another text", False
    if other is None:
        return f"the earlier report has no run of the engine {run.engine}", False
    if texts_of(run) != texts_of(other):
        return "the earlier report has other documents", False
    now, then = run.overall.reference_perplexity, other.overall.reference_perplexity
    if abs(now / then - 1) > _SAME_BASELINE:
        return f"the reference's perplexity was {then:.5g} and is {now:.5g}, on the same text", True
    return "", False


def texts_of(run: Run) -> list[tuple[str, str, int]]:
    """Language, name and tokens of every document: what pairs those of two reports."""
    return [(d.language, d.name, d.tokens) for d in run.documents]


def paired(scope: str, now: Sequence[Document], then: Sequence[Document], floor: float) -> Growth:
    """The ratio and difference of two mean KL divergences over the same documents; ``floor`` is the
    noise floor's mean."""
    tokens = np.array([d.tokens for d in now], dtype=np.float64)
    sums = np.array([[d.kl for d in now], [d.kl for d in then]], dtype=np.float64)
    everything = np.ones((1, len(tokens)), dtype=np.int32)
    (mean,), drawn = (_means(sums, tokens, w) for w in (everything, _draws(now)))
    ratio = mean[0] / mean[1] if mean[1] > 0 else (1.0 if mean[0] == 0 else np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(drawn[:, 1] > 0, drawn[:, 0] / drawn[:, 1], ratio)
    point = float(mean[0] - mean[1])
    difference = interval(drawn[:, 0] - drawn[:, 1], len(tokens)) or (point, point)
    return Growth(
        scope=scope,
        ratio=float(ratio),
        interval=interval(ratios, len(tokens)) or (float(ratio), float(ratio)),
        difference=difference,
        within_noise=max(abs(difference[0]), abs(difference[1])) <= floor,
    )


def _means(
    sums: NDArray[np.float64], tokens: NDArray[np.float64], weights: NDArray[np.int32]
) -> NDArray[np.float64]:
    """float64[resamples, 2]"""
    return np.asarray((weights @ sums.T) / (weights @ tokens)[:, None])


def _draws(documents: Sequence[Document]) -> NDArray[np.int32]:
    """Resamples within each language; ``documents`` are in the order of the languages."""
    counts: dict[str, int] = {}
    for document in documents:
        counts[document.language] = counts.get(document.language, 0) + 1
    if len(counts) > 1 and min(counts.values()) < 2:
        return resample(len(documents), "overall")
    return np.hstack([resample(count, language) for language, count in counts.items()])
