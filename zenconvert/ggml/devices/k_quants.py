"""Encoders of the K-quants: :mod:`zenconvert.ggml.blocks.k_quants` in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import torch

from zenconvert.base.arrays import Array
from zenconvert.ggml.block_fields import FIELDS
from zenconvert.ggml.devices.lanes import (
    TINY,
    around,
    beside,
    first_largest,
    from_lanes,
    in_lanes,
    kept_half,
    nearest,
    per_block,
    ratio,
    requantized,
    squares_of_blocks,
    upward,
    weighed,
)
from zenconvert.ggml.devices.searches import (
    affine,
    descent,
    ordered_sums,
    positive,
    square_roots,
    symmetric,
)
from zenconvert.ggml.nested_grids import GRIDS, Parts, packed

_BLOCK: Final = 256


class _Affine(NamedTuple):
    """How scales and minimums of a type are found."""

    sweep: tuple[float, float, int]
    """First, step and last of the inverse scales that are tried without importance."""
    factor: float
    """Of the mean square, with importance."""
    cut: int = 255
    """Codes of scales above it are cut before they are packed."""


_AFFINE: Final = {
    "q2_k": _Affine((-0.5, 0.1, 15), 1.0),
    "q4_k": _Affine((-1.0, 0.1, 20), 2.0),
    "q5_k": _Affine((-0.5, 0.1, 15), 2.0, 63),
}
_WEIGHTED: Final = (-0.9, 0.05, 36)


def _affine(name: str, values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    how, grid = _AFFINE[name], GRIDS[name]
    most, largest = len(grid.levels) - 1, grid.scales[1]
    x = in_lanes(values, _BLOCK, grid.group)
    if importance is None:
        scales, minimums, stale = _searched(x, most, how, absolute=name == "q2_k")
        d, codes = _by_peak(scales, largest)
        dmin, minimum_codes = _by_peak(minimums, largest)
    else:
        weights = weighed(x, importance, how.factor * squares_of_blocks(x) / _BLOCK)
        totals = ordered_sums(weights)
        tried = upward(most, *_WEIGHTED, x.device)
        scales, lows, stale = affine(x, weights, most, tried, absolute=False)
        fine = beside(largest, x.device)
        d, codes = positive(scales, totals, largest, fine)
        dmin, minimum_codes = positive(0 - lows, totals, largest, fine)
    # without importance Q4_K is cut, too
    cut = largest if importance is None and name == "q4_k" else how.cut
    parts = Parts(
        from_lanes(stale), d, codes.clamp(max=cut).t(), dmin, minimum_codes.clamp(max=cut).t()
    )
    return packed(name, parts._replace(codes=_final(name, x, parts, stale)))


def _searched(
    x: torch.Tensor, most: int, how: _Affine, *, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales, minimums and codes without importance: large weights count more."""
    weights = x.abs()
    if not absolute:
        weights = square_roots(ordered_sums(x * x) / len(x)) + weights
    tried = upward(most, *how.sweep, x.device)
    scales, lows, codes = affine(x, weights, most, tried, absolute=absolute)
    return scales, 0 - lows, codes


def _by_peak(values: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit float32[blocks], and codes modulo 256, the largest ``most``."""
    peak = values.amax(0).clamp(min=0)
    inverse = torch.where(peak > 0, ratio(most, peak), 0)
    return ratio(peak, most), nearest(inverse * values) & 255


def _final(name: str, x: torch.Tensor, parts: Parts, stale: torch.Tensor) -> torch.Tensor:
    """Codes u8[blocks, 256] under the scales that a reader finds."""
    read = FIELDS[name](packed(name, parts))
    assert read.scales is not None
    assert read.minimums is not None
    assert read.offsets is not None
    d = read.steps.float()[:, None] * read.scales.float()
    m = read.offsets.float()[:, None] * read.minimums.float()
    most = len(GRIDS[name].levels) - 1
    return from_lanes(requantized(x, d.t(), m.t(), (0, most), stale))


def _q3_k(values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    x = in_lanes(values, _BLOCK, 16)
    if importance is None:
        scales, stale = descent(x, x * x, 4)
        d, codes = _around_peak(scales)
    else:
        weights = weighed(x, importance, 2 * squares_of_blocks(x) / _BLOCK)
        tried = around(4, x.device)
        scales, stale = symmetric(x, weights, 4, tried)
        totals, fine = ordered_sums(weights), around(32, x.device)
        d, found = symmetric(scales, totals, 32, fine)
        codes = found.int() - 32
    scale = kept_half(d) * codes.float()
    final = requantized(x, scale, None, (-4, 3), stale)
    return packed("q3_k", Parts(from_lanes(final), d, codes.t()))


def _around_peak(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit and codes -32 … 31 of Q3_K's scales without importance."""
    peak = first_largest(scales)
    inverse = ratio(-32, peak)
    # C keeps the code in a signed byte before it cuts off what is outside
    codes = ((nearest(inverse * scales) & 255) ^ 128) - 128
    zero = peak == 0
    codes = torch.where(zero, -32, codes.clamp(-32, 31))
    return torch.where(zero, 0, ratio(1, inverse)), codes


def _q6_k(values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    x = in_lanes(values, _BLOCK, 16)
    weights = x * x if importance is None else per_block(importance, x)
    scales, stale = symmetric(x, weights, 32, around(32, x.device))
    peak = first_largest(scales)
    zero = peak.abs() < TINY
    inverse = ratio(-128, peak)
    d = torch.where(zero, 0, ratio(1, inverse))
    codes = torch.where(zero, 0, nearest(inverse * scales).clamp(max=127))
    final = requantized(x, kept_half(d) * codes.float(), None, (-32, 31), stale)
    final = torch.where(zero, 0, final)
    return packed("q6_k", Parts(from_lanes(final), d, codes.t()))


ENCODERS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor | None], Array]]] = {
    **{name: partial(_affine, name) for name in _AFFINE},
    "q3_k": _q3_k,
    "q6_k": _q6_k,
}
