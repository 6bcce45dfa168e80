"""Small unsigned integers packed into bytes along the last axis, lowest bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def per_byte(bits: int) -> int:
    """Integers that share a byte."""
    return 8 // bits


def packed_width(count: int, bits: int) -> int:
    """Bytes that ``count`` integers take; the last may be partly empty."""
    return -(-count * bits // 8)


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """``uint8[…, n]`` of 2, 4 or 8 bits → ``uint8[…, packed_width(n)]``; missing ones are 0."""
    share = per_byte(bits)
    if share == 1:
        return values
    if missing := -values.shape[-1] % share:
        padding = np.zeros((*values.shape[:-1], missing), dtype=np.uint8)
        values = np.concatenate([values, padding], axis=-1)
    out = np.ascontiguousarray(values[..., ::share])
    for place in range(1, share):
        out |= values[..., place::share] << np.uint8(place * bits)
    return out


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first ``count`` integers of every row of :func:`pack`."""
    share = per_byte(bits)
    if share == 1:
        return packed[..., :count]
    out = np.empty((*packed.shape, share), dtype=np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for place in range(share):
        out[..., place] = (packed >> np.uint8(place * bits)) & mask
    return out.reshape(*packed.shape[:-1], -1)[..., :count]
