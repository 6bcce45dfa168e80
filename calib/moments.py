"""Second moments of activations: Σ w·x·xᵀ over tokens, float32[columns, columns].

Only tiles on and above the diagonal are computed; the rest is mirrored at the end, so that the
result is exactly symmetric. Products of bfloat16 or float16 numbers are exact in float32, so on a
CUDA device the tensor cores multiply them as they are and accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

TILE: Final = {"cuda": 4096, "cpu": 1024}
"""Columns of a tile by kind of device; large enough for its multiply units."""


class Moments:
    """Accumulates the second moments of one input on one device."""

    def __init__(self, columns: int, device: torch.device | str) -> None:
        self.columns = columns
        self.tile = TILE.get(torch.device(device).type, 1024)
        self.sums = torch.zeros(columns, columns, dtype=torch.float32, device=device)

    def add(self, rows: torch.Tensor, weight: float) -> None:
        """Add ``weight`` · Σ x·xᵀ over rows [tokens, columns] of the device."""
        for i, j in self._tiles():
            self.sums[i, j].add_(_product(rows[:, i], rows[:, j]), alpha=weight)

    def finish(self) -> torch.Tensor:
        """The whole symmetric matrix; nothing may be added any more."""
        for i, j in self._tiles():
            if i == j:
                upper = self.sums[i, i].triu()
                self.sums[i, i] = upper + upper.triu(1).T
            else:
                self.sums[j, i] = self.sums[i, j].T
        return self.sums

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        parts = [
            slice(at, min(at + self.tile, self.columns)) for at in range(0, self.columns, self.tile)
        ]
        for number, rows in enumerate(parts):
            for columns in parts[number:]:
                yield rows, columns


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``leftᵀ · right`` in float32 of [tokens, a] and [tokens, b]."""
    if left.is_cuda and left.dtype != torch.float32 and _mixed_precision():
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.T.float() @ right.float()


def _mixed_precision() -> bool:
    """Whether this torch multiplies halves into float32."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 8)
