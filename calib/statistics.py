"""Statistics of what one or several linear modules read, per language.

::

    tokens      t_l            rows that language l brought here (routed ones, for an expert)
    squares     Σ x²           per input channel
    magnitudes  Σ |x|          per input channel
    moments     Σ c_l·x·xᵀ     over all tokens; a token of language l counts c_l

The weights c_l make every language weigh as it should in total, whatever its number of tokens; they
are 1 on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass
class RowFisher:
    """What errors in rows of the embedding cost downstream: ½·freq·eᵀ·F·e for an error e."""

    moments: torch.Tensor
    """F, float32[columns, columns], symmetric: a mean over tokens."""
    tokens: int
    """Of all languages."""
    dropped: int
    """Tokens of these whose gradients were not finite somewhere, and count as zeros there."""
    head: torch.Tensor | None = None
    """The part of ``moments`` that comes of a head that is tied to the embedding."""

    def importance(self) -> NDArray[np.float32]:
        """The diagonal, float32[columns], 1 on average; zeros where it is not finite, ones where
        nothing was found."""
        found: NDArray[np.float32] = self.moments.diagonal().cpu().numpy()
        values = found.copy()
        values[~(np.isfinite(found) & (found > 0))] = 0
        mean = float(values.mean(dtype=np.float64))
        return values / np.float32(mean) if mean > 0 else np.ones_like(values)


@dataclass
class InputStatistics:
    """Statistics of one distinct input."""

    name: str
    """The first module that reads it, by its neutral name."""
    modules: tuple[str, ...]
    """All modules that read it."""
    token_weights: NDArray[np.float64]
    """c_l, float64[languages]."""
    tokens: NDArray[np.int64]
    """int64[languages]."""
    squares: NDArray[np.float32]
    """float32[languages, columns]."""
    magnitudes: NDArray[np.float32]
    """float32[languages, columns]."""
    moments: torch.Tensor | None = None
    """float32[columns, columns], symmetric; None where nobody asked for them."""

    @property
    def columns(self) -> int:
        """Input channels."""
        return int(self.squares.shape[1])

    @property
    def count(self) -> int:
        """Rows of all languages."""
        return int(self.tokens.sum())

    @property
    def weight(self) -> float:
        """Σ c_l·t_l: divide ``moments`` by it for their mean. 0 where nothing came."""
        return float(self.token_weights @ self.tokens)

    def weighted_sums(self, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums over languages, float32[columns], as if :attr:`count` average tokens had come.

        Zeros where nothing came that weighs anything.
        """
        if not self.weight:
            return np.zeros(self.columns, dtype=np.float32)
        total = self.token_weights @ sums.astype(np.float64)
        return (total * (self.count / self.weight)).astype(np.float32)

    def importance(self) -> NDArray[np.float32]:
        """Language-weighted mean of x², float32[columns]: what llama.cpp makes of an imatrix.

        Ones where nothing came that weighs anything: no channel is more important.
        """
        if not self.weight:
            return np.ones(self.columns, dtype=np.float32)
        return self.weighted_sums(self.squares) / np.float32(self.count)

    def mean_magnitudes(self) -> NDArray[np.float32]:
        """Language-weighted mean of |x|, float32[columns]; zeros where nothing came."""
        return self.weighted_sums(self.magnitudes) / np.float32(max(1, self.count))
