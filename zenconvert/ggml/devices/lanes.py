"""What the encoders of this room share: blocks beside each other, and C's rounding."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch

from zenconvert.ggml.devices.searches import ordered_sums, square_roots

TINY: Final = 1e-15
_MAGIC: Final = 12582912.0  # 1.5 * 2**23


def in_lanes(values: torch.Tensor, block: int, group: int) -> torch.Tensor:
    """float32[rows, columns] as float32[group, groups of a block, blocks]."""
    return values.reshape(-1, block // group, group).permute(2, 1, 0).contiguous()


def from_lanes(codes: torch.Tensor) -> torch.Tensor:
    """[n, groups, blocks] as [blocks, elements]."""
    return codes.permute(2, 1, 0).reshape(codes.shape[2], -1)


def per_block(importance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """float32[columns] of a row for the lanes of ``x`` float32[n, groups, blocks]."""
    n, groups, blocks = x.shape
    of_row = in_lanes(importance[None], groups * n, n)
    return of_row.repeat(1, 1, blocks // of_row.shape[2])


def weighed(x: torch.Tensor, importance: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Importance times sqrt(spread + x * x), as ``x``; ``spread`` float32[blocks]."""
    return per_block(importance, x) * square_roots(spread + x * x)


def squares_of_blocks(x: torch.Tensor) -> torch.Tensor:
    """float32[blocks]: sums of squares, added up in order."""
    return ordered_sums((x * x).transpose(0, 1).reshape(-1, x.shape[2]))


def ratio(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b as IEEE says; with a number for either, torch multiplies by an inverse instead."""
    like = a if isinstance(a, torch.Tensor) else b
    assert isinstance(like, torch.Tensor)
    both = [c if isinstance(c, torch.Tensor) else torch.full_like(like, c) for c in (a, b)]
    return both[0] / both[1]


def inverse(d: torch.Tensor) -> torch.Tensor:
    """1 / d, or 0 where d is 0."""
    return torch.where(d == 0, 0, ratio(1, d))


def nearest(x: torch.Tensor) -> torch.Tensor:
    """``nearest_int`` of ggml-quants.c, int32; NaN is what it is on x86-64."""
    bits = (x + _MAGIC).view(torch.int32) & 0x7FFFFF
    return torch.where(x.isnan(), 0, bits - 0x400000)


def within(x: torch.Tensor, least: int, most: int) -> torch.Tensor:
    """The same between bounds, float32."""
    return nearest(x).clamp(least, most).float()


def kept_half(values: torch.Tensor) -> torch.Tensor:
    """What is left of float32 in float16."""
    return values.half().float()


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """The first of largest magnitude over dimension 0, with its sign; +0 where all are 0."""
    peak = torch.zeros_like(values[0])
    for value in values:
        peak = torch.where(value.abs() > peak.abs(), value, peak)
    return peak


def requantized(
    x: torch.Tensor,
    d: torch.Tensor,
    m: torch.Tensor | None,
    bounds: tuple[int, int],
    stale: torch.Tensor,
) -> torch.Tensor:
    """Codes u8 from 0 under stored scales; those of the search where the scale is 0."""
    moved = x if m is None else x + m
    codes = within(moved / d, *bounds) - bounds[0]
    return torch.where(d == 0, stale, codes.to(torch.uint8))


@cache
def around(half: int, device: torch.device) -> torch.Tensor:
    """Numerators of ``make_qx_quants``: -half, then -(half + step / 10) for 18 steps."""
    size, tenth = np.float32(half), np.float32(0.1)
    steps = [np.float32(tenth * np.float32(step)) for step in range(-9, 10) if step]
    return _there([-size, *(-np.float32(size + step) for step in steps)], device)


@cache
def upward(most: int, first: float, step: float, last: int, device: torch.device) -> torch.Tensor:
    """Numerators of ``make_qkx3_quants``: first + i * step + most for i = 0 ... last."""
    begin, width, top = np.float32(first), np.float32(step), np.float32(most)
    places = (np.float32(begin + np.float32(width * np.float32(i))) for i in range(last + 1))
    return _there([np.float32(place + top) for place in places], device)


@cache
def beside(most: int, device: torch.device) -> torch.Tensor:
    """Numerators of ``make_qp_quants``: most, then step / 10 + most for 8 steps."""
    top, tenth = np.float32(most), np.float32(0.1)
    steps = [np.float32(tenth * np.float32(step)) for step in range(-4, 5) if step]
    return _there([top, *(np.float32(step + top) for step in steps)], device)


def _there(numbers: list[np.float32], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(numbers, np.float32)).to(device)
