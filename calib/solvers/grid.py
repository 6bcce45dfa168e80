"""Grids of one group of columns: a float16 scale and an integer zero, searched on the bytes kept.

A scale is rounded to float16 before any code is computed, so an error measured here is the error of
the file. Scales are positive: kernels of several consumers expect it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

import torch

from zenconvert.calib.solvers.levels import REFITS, Levels

LARGEST_F16: Final = 65504.0
SMALLEST_SCALE: Final = 2.0**-24
"""Smallest positive float16, the scale of groups of zeros too: theirs may be any number."""
_SLAB_ELEMENTS: Final = 1 << 23


@cache
def fused_kernels() -> ModuleType | None:
    """The module of CUDA kernels, where Triton is installed."""
    if find_spec("triton") is None:
        return None
    return import_module("zenconvert.calib.solvers.kernels")


def round_scale(scale: torch.Tensor) -> torch.Tensor:
    """The nearest positive finite float16 of every scale, as float32."""
    return scale.clamp(SMALLEST_SCALE, LARGEST_F16).half().float()


def quantize(
    target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | float, top: int
) -> torch.Tensor:
    """The value on the grid nearest to every target; all float32 and broadcast together."""
    steps = torch.mul(target, 1.0 / scale).round_().add_(zero).clamp_(0, top)
    return steps.sub_(zero).mul_(scale)


def search(
    target: torch.Tensor, importance: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of every row of one group, by least weighted squared error.

    Args:
        target: float32[rows, columns], finite; or of several groups, [groups, rows, columns].
        importance: float32[columns] or [groups, columns], not negative.
        levels: the codes.

    Returns scale and zero, float32[rows] or [groups, rows]; the scales are float16 numbers.
    """
    kernels = fused_kernels() if target.is_cuda and target.ndim == 2 else None
    if kernels is not None and target.shape[1] <= kernels.LONGEST_GROUP:
        found: tuple[torch.Tensor, torch.Tensor] = kernels.search_rows(target, importance, levels)
        return found
    if target.device.type == "cpu":
        from zenconvert.calib.solvers.host_kernels import search_rows

        return search_rows(target, importance, levels)
    rows = max(1, _SLAB_ELEMENTS * target.shape[-2] // target.numel())
    parts = [_search(slab, importance, levels) for slab in torch.split(target, rows, dim=-2)]
    return torch.cat([p[0] for p in parts], -1), torch.cat([p[1] for p in parts], -1)


def _search(
    target: torch.Tensor, importance: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    candidates = _candidates(target, levels)
    best = _Best(target, importance, levels, *next(candidates))
    for scale, zero in candidates:
        best.consider(scale, zero)
    for _ in range(REFITS):
        best.refit()
    return best.scale[..., 0], best.zero[..., 0]


def _candidates(
    target: torch.Tensor, levels: Levels
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zeros [..., rows, 1] to try, zero and the range's ends always among the values."""
    high = target.amax(-1, keepdim=True).clamp(min=0)
    low = target.amin(-1, keepdim=True).clamp(max=0)
    if levels.symmetric:
        full = torch.maximum(high, -low) * (2 / levels.top)
        zero = torch.full_like(full, levels.midpoint)
        for shrink in levels.shrinks():
            yield full * shrink, zero
        return
    full = (high - low) / levels.top
    centre = (-low / full.clamp(min=SMALLEST_SCALE)).round_()
    for shrink in levels.shrinks():
        for shift in (-1, 0, 1):
            yield full * shrink, (centre + shift).clamp_(levels.lowest_zero, levels.top)


class _Best:
    """The best grid so far of every row of one group."""

    def __init__(
        self,
        target: torch.Tensor,
        importance: torch.Tensor,
        levels: Levels,
        scale: torch.Tensor,
        zero: torch.Tensor,
    ) -> None:
        self.target, self.importance, self.levels = target, importance[..., None], levels
        self.scale, self.zero = round_scale(scale), zero
        self.error = self._error(self.scale, zero)

    def _error(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        error = quantize(self.target, scale, zero, self.levels.top).sub_(self.target).square_()
        return error @ self.importance

    def consider(self, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """Take a grid where it is better."""
        scale = round_scale(scale)
        error = self._error(scale, zero)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)

    def refit(self) -> None:
        """Consider the scale that suits the codes best."""
        steps = quantize(self.target, self.scale, self.zero, self.levels.top) / self.scale
        product = (steps * self.target) @ self.importance
        square = steps.square_() @ self.importance
        fitted = product / square.clamp(min=torch.finfo(square.dtype).tiny)
        self.consider(fitted, self.zero)
