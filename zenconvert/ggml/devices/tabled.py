"""Encoders of IQ4_NL and IQ4_XS: :mod:`zenconvert.ggml.blocks.iq4` in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Final

import torch

from zenconvert.base.arrays import Array
from zenconvert.ggml.block_fields import IQ4_LEVELS
from zenconvert.ggml.devices.lanes import (
    first_largest,
    from_lanes,
    in_lanes,
    inverse,
    nearest,
    squares_of_blocks,
    weighed,
)
from zenconvert.ggml.devices.searches import tabled
from zenconvert.ggml.nested_grids import GRIDS, Parts, packed

_TRIES: Final = 7


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels, the middles between them, and the numerators of the scales that are tried."""
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    tried = torch.arange(-_TRIES, _TRIES + 1, dtype=torch.float32) + levels[0]
    tried = torch.cat([levels[:1], tried])  # the first is that of the peak itself
    return levels.to(device), middles.to(device), tried.to(device)


def _encode(name: str, values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    block = GRIDS[name].block
    x = in_lanes(values, block, 32)
    weights = x * x
    if importance is not None:
        weights = weighed(x, importance, squares_of_blocks(x) * (2 / block))
    levels, middles, tried = _tables(x.device)
    scales = tabled(x, weights, levels, middles, tried)
    if name == "iq4_nl":
        d, whole, factors = scales[0], scales, inverse(scales)
    else:
        d = first_largest(scales) / -32
        whole = nearest(inverse(d) * scales).clamp(-32, 31)
        factors = inverse(d * whole.float())
    codes = torch.bucketize(factors * x, middles, right=True, out_int32=True)
    return packed(name, Parts(from_lanes(codes.to(torch.uint8)), d, whole.t()))


ENCODERS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor | None], Array]]] = {
    name: partial(_encode, name) for name in ("iq4_nl", "iq4_xs")
}
