"""Intervals by block bootstrap: whole documents are drawn, since their tokens depend on each other.

Percentile intervals are too narrow for few blocks; the percentiles are moved outwards as in
T. Hesterberg, "What Teachers Should Know about the Bootstrap" (2015), section 5.2 ("expanded
percentile interval"). With two or three blocks that gives the range of all resamples.
"""

from __future__ import annotations

import zlib
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Both ends of a 95 % interval."""

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
SEED: Final = 0

_NORMAL: Final = NormalDist()


def resample(blocks: int, label: str, *, resamples: int = RESAMPLES) -> NDArray[np.int32]:
    """How often each block is drawn, int32[resamples, blocks].

    The draw depends on ``label`` (a language) and the fixed seed alone, so that a language gets the
    same numbers whatever stands beside it.
    """
    random = np.random.default_rng([SEED, zlib.crc32(label.encode())])
    return random.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(np.int32)


def interval(replicates: NDArray[np.float64], blocks: int) -> Interval | None:
    """The 95 % interval of a figure from its value in every resample of ``blocks`` blocks.

    None where there are fewer than two blocks, or a value is no number.
    """
    if blocks < 2 or np.isnan(replicates).any():
        return None
    tail = _expanded_tail(blocks)
    once = np.ones(len(replicates), dtype=np.int32)
    low, high = weighted_quantiles(np.sort(replicates), once, np.array([tail, 1 - tail]))
    return float(low), float(high)


def _expanded_tail(blocks: int) -> float:
    """The share cut off at each end."""
    factor = (blocks / (blocks - 1)) ** 0.5
    return _NORMAL.cdf(factor * _student((1 - CONFIDENCE) / 2, blocks - 1))


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t, by the Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5)."""
    z = _NORMAL.inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def weighted_quantiles(
    values: NDArray[np.float64], weights: NDArray[np.int32], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``np.quantile`` of ascending ``values``, each repeated as often as ``weights`` says.

    ``shares`` ascend. NaN where all weights are zero.
    """
    ends = np.cumsum(weights)
    total = int(ends[-1])
    if total == 0:
        return np.full(len(shares), np.nan)
    positions = shares * (total - 1)
    below = np.floor(positions).astype(np.int64)
    above = np.minimum(below + 1, total - 1)
    low = values[np.searchsorted(ends, below, side="right")]
    high = values[np.searchsorted(ends, above, side="right")]
    # two products, not a difference: infinite values stay what they are
    part = positions - below
    between = np.where(part == 0, low, low * (1 - part) + high * part)
    return np.maximum.accumulate(np.clip(between, low, high))  # rounding takes them out of order
