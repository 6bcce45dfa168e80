"""How many positions have which KL divergence, in classes of a quarter decade."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

EDGES: Final = tuple(round(-8 + 0.25 * n, 2) for n in range(41))
"""Decadic logarithms of the borders between the classes."""


def histogram(kl: NDArray[np.float64]) -> tuple[int, ...]:
    """Positions by KL divergence: below all of :data:`EDGES`, between them, above all."""
    borders = np.array([-np.inf, *EDGES, np.inf])
    with np.errstate(divide="ignore"):
        logarithms = np.log10(np.maximum(kl, 0.0))
    places = np.clip(np.searchsorted(borders, logarithms, side="right") - 1, 0, len(EDGES))
    return tuple(int(n) for n in np.bincount(places, minlength=len(EDGES) + 1))


def histogram_as_dict(counts: tuple[int, ...]) -> dict[str, Any]:
    """JSON form."""
    return {"log10_edges": list(EDGES), "counts": list(counts)}
