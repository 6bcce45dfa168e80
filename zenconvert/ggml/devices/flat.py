"""Encoders of Q4_0 Q4_1 Q5_0 Q5_1 Q8_0: :mod:`zenconvert.ggml.blocks.legacy` in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from zenconvert.base.arrays import Array
from zenconvert.ggml.devices.lanes import (
    around,
    from_lanes,
    in_lanes,
    inverse,
    ratio,
    upward,
    weighed,
)
from zenconvert.ggml.devices.searches import affine, ordered_sums, symmetric
from zenconvert.ggml.nested_grids import GRIDS, Parts, packed

_BLOCK: Final = 32
_BELOW_HALF: Final = 0.49999997  # the float32 before 0.5
_WEIGHTED: Final = (-0.9, 0.05, 36)


def _symmetric(name: str, values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    half = len(GRIDS[name].levels) // 2
    if importance is not None:
        x, weights = _weighed(values, importance)
        scales, codes = symmetric(x, weights, half, around(half, x.device))
        return packed(name, Parts(from_lanes(codes), scales[0], scales))
    blocks = values.reshape(-1, _BLOCK)
    peak = torch.gather(blocks, 1, _first(blocks.abs() == blocks.abs().amax(1, keepdim=True)))
    d = torch.where(peak == 0, 0, peak) / -half
    factor = inverse(d)
    beyond = factor.isinf()
    offset = torch.where(beyond, 0, half + 0.5)
    found = blocks * torch.where(beyond, 0, factor) + offset
    codes = found.clamp(max=2 * half - 1).to(torch.uint8)
    return packed(name, Parts(codes, d[:, 0], d))


def _affine(name: str, values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    most = len(GRIDS[name].levels) - 1
    if importance is not None:
        x, weights = _weighed(values, importance)
        tried = upward(most, *_WEIGHTED, x.device)
        scales, lows, codes = affine(x, weights, most, tried, absolute=False)
        return packed(name, Parts(from_lanes(codes), scales[0], scales, lows[0]))
    blocks = values.reshape(-1, _BLOCK)
    least, largest = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    low = torch.gather(blocks, 1, _first(blocks == least))  # of zeros the first one's sign
    d = ratio(largest + 0 - low, most)
    factor = inverse(d)
    factor = torch.where(factor.isinf(), 0, factor)
    codes = ((blocks - low) * factor + 0.5).clamp(max=most).to(torch.uint8)
    return packed(name, Parts(codes, d[:, 0], d, low[:, 0]))


def _first(there: torch.Tensor) -> torch.Tensor:
    """The first column of every row that is true, int64[rows, 1]."""
    places = torch.arange(there.shape[1], device=there.device)
    return torch.where(there, places, there.shape[1]).amin(1, keepdim=True)


def _weighed(values: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks in lanes, and the weights of their errors by the mean square of the whole row."""
    columns = values.shape[1]
    x = in_lanes(values, _BLOCK, _BLOCK)
    squares = ordered_sums((values * values).t().contiguous())
    spread = ratio(squares, columns).repeat_interleave(columns // _BLOCK)
    return x, weighed(x, importance, spread)


def _q8_0(values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    blocks = values.reshape(-1, _BLOCK)
    d = ratio(blocks.abs().amax(1, keepdim=True), 127)
    factor = inverse(d)
    scaled = blocks * torch.where(factor.isinf(), 0, factor)
    half = torch.where(scaled < 0, -_BELOW_HALF, _BELOW_HALF)
    codes = (scaled + half).to(torch.int8).view(torch.uint8)
    return torch.cat([d.half().view(torch.uint8), codes], 1)


ENCODERS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor | None], Array]]] = {
    "q4_0": partial(_symmetric, "q4_0"),
    "q5_0": partial(_symmetric, "q5_0"),
    "q4_1": partial(_affine, "q4_1"),
    "q5_1": partial(_affine, "q5_1"),
    "q8_0": _q8_0,
}
