"""How figures are written in tables, pages and summaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zenconvert.verification.drift import Drift


@dataclass(frozen=True, slots=True)
class Figure:
    """A column of the tables."""

    name: str
    title: str


DIVERGENCE: Final = (
    Figure("kl.mean", "KL mean"),
    Figure("kl.median", "KL median"),
    Figure("kl.p99", "KL p99"),
    Figure("kl.p999", "KL p99.9"),
    Figure("kl.max", "KL max"),
    Figure("top1", "top-1"),
    Figure("flips.lost", "flips lost"),
    Figure("flips.gained", "flips gained"),
)
PREDICTION: Final = (
    Figure("perplexity.reference", "ppl reference"),
    Figure("perplexity.candidate", "ppl artifact"),
    Figure("perplexity.ratio", "ratio"),
    Figure("bits_per_byte.reference", "bits/byte reference"),
    Figure("bits_per_byte.candidate", "bits/byte artifact"),
    Figure("dp.rms", "RMS Δp"),
    Figure("dp.p01", "Δp p1"),
    Figure("dp.p99", "Δp p99"),
)


def figure(drift: Drift, name: str) -> str:
    """The value of a figure, as precise as its kind asks for."""
    return _written(name, drift.figures[name])


def span(drift: Drift, name: str) -> str:
    """Its interval, empty where there is none."""
    if name not in drift.intervals:
        return ""
    low, high = drift.intervals[name]
    return f"{_written(name, low)} – {_written(name, high)}"


def _written(name: str, value: float) -> str:
    if name == "top1" or name.startswith(("flips.", "dp.")):
        return share(value)
    if name in {"perplexity.reference", "perplexity.candidate"}:
        return f"{value:.3f}"
    if name in {"perplexity.ratio", "bits_per_byte.candidate", "bits_per_byte.reference"}:
        return f"{value:.4f}"
    if value == 0:
        return "0"
    return f"{value:.4f}" if value >= 0.1 else f"{value:.5f}" if value >= 1e-4 else f"{value:.2e}"


def share(value: float) -> str:
    """Percent; more digits where two would say nothing."""
    return f"{100 * value:.2f} %" if value == 0 or abs(value) >= 5e-5 else f"{100 * value:.1e} %"


def megabytes(count: int) -> str:
    """Decimal megabytes or gigabytes, three digits."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def parameter_count(count: int) -> str:
    """Millions, billions or trillions, three digits: 9.71M, 111B."""
    for unit, letter in ((1e12, "T"), (1e9, "B")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count / 1e6:.3g}M"
