"""The codes of a grid, and the scales that a search tries for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zenconvert.model.target import Scheme

SHRINKS: Final = 24
"""Scales tried between the full range of a group and :attr:`Levels.tightest` of it."""
REFITS: Final = 2
"""Least-squares scales tried after that."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The codes ``0 … top`` and which zeros they may have."""

    top: int
    symmetric: bool
    lowest_zero: int = 0

    @classmethod
    def of(cls, scheme: Scheme, lowest_zero: int = 0) -> Levels:
        """The levels of a scheme; zeros of an asymmetric one start at ``lowest_zero``."""
        return cls(scheme.levels - 1, scheme.symmetric, lowest_zero)

    @property
    def midpoint(self) -> int:
        """The zero of a symmetric grid."""
        return (self.top + 1) // 2

    @property
    def tightest(self) -> float:
        """The smallest share of a group's full range that is worth trying."""
        return 0.8 if self.top > 100 else 0.35

    def shrinks(self) -> list[float]:
        """Factors on the scale that spans a group's range, the full range first."""
        # symmetric codes reach one step less far up than down
        widest = self.top / 2 / (self.midpoint - 1) if self.symmetric else 1.0
        step = (widest - self.tightest) / (SHRINKS - 2)
        return [1.0, *(widest - step * i for i in range(SHRINKS - 1))]
