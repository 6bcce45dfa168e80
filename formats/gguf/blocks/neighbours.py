"""The nearest points of a codebook (:mod:`.grids`) to each corner of its lattice.

A corner is a choice of one level per coordinate. Rounding weights coordinate by coordinate leads to
a corner that is often no point of the codebook; libggml then takes the best of the nearest points:
all those at the least distance, or at the two or three least distances. Corners and points are
known by their *codes*, the packed level numbers of :mod:`.grids`.

Source: ``iq2xs_init_impl``, ``iq3xs_init_impl`` and ``iq*_find_best_neighbour`` in ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zenconvert.formats.gguf.blocks.arithmetic import F32_MAX
from zenconvert.formats.gguf.blocks.grids import codes
from zenconvert.formats.gguf.blocks.lanes import (
    LANES,
    Floats,
    first_least,
    lane,
    load_words,
    lookup,
    select,
    splat,
)

_DISTANCES: Final = {"iq1": 3, "iq2_xxs": 2, "iq2_xs": 2, "iq2_s": 1, "iq3_xxs": 2, "iq3_s": 3}
"""How many of the least distances count as near."""
_COUNT_BITS: Final = 5
_COUNT: Final = 31


class Neighbours(NamedTuple):
    """The near points of every corner, in runs of sixteen: point p of a list of ``count`` runs is
    lane ``p // count`` of its run ``p % count``, so that lanes hold them in libggml's order."""

    runs: NDArray[np.int32]
    """[codes]: 0 for a point of the codebook, else 32 * the first run + the number of runs."""
    codes: NDArray[np.uint16]
    """[runs, 16]: the codes of the points; the last point fills up the list."""


@cache
def neighbours(name: str) -> Neighbours:
    """The lists of one codebook; read-only."""
    bits, dimensions, levels = (3, 4, 8) if name.startswith("iq3") else (2, 8, 3)
    shifts = bits * np.arange(dimensions)
    corners = np.indices((levels,) * dimensions).reshape(dimensions, -1).T
    points = codes(name)[:, None] >> shifts & ((1 << bits) - 1)
    owners, members = _near(corners, points, _DISTANCES[name])
    lengths = np.bincount(owners, minlength=len(corners))
    counts = -(-lengths // LANES)
    firsts = np.cumsum(counts) - counts
    run_codes = _laid_out(codes(name)[members], lengths, counts)
    runs = np.zeros(1 << bits * dimensions, dtype=np.int32)
    runs[(corners << shifts).sum(axis=1)] = (firsts << _COUNT_BITS | counts) * (counts > 0)
    lists = Neighbours(runs, run_codes)
    for array in lists:
        array.flags.writeable = False
    return lists


def _near(
    corners: NDArray[np.int64], points: NDArray[np.int64], distances: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(corner, point) of every pair of a corner outside the codebook and a near point.

    Ordered by corner, then distance, then point.
    """
    owners, members = [], []
    for start in range(0, len(corners), 512):
        part = corners[start : start + 512]
        # whole numbers below 2**24: exact in any order
        products = part.astype(np.float32) @ points.T.astype(np.float32)
        lengths = (part**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)
        squares = (lengths - 2 * products).astype(np.uint8)
        limit = squares.min(axis=1)
        is_outside = limit > 0
        for _ in range(distances - 1):
            beyond = squares > limit[:, None]
            limit = np.where(beyond, squares, np.uint8(255)).min(axis=1)
        owner, member = np.nonzero((squares <= limit[:, None]) & is_outside[:, None])
        order = np.lexsort((member, squares[owner, member], owner))
        owners.append(start + owner[order])
        members.append(member[order])
    return np.concatenate(owners), np.concatenate(members)


def _laid_out(
    values: NDArray[np.uint16], lengths: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.uint16]:
    """Lists of ``lengths`` values, one after the other, as runs u16[sum of counts, 16]."""
    list_of_run = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(list_of_run)) - (np.cumsum(counts) - counts)[list_of_run]
    position = np.arange(LANES) * counts[list_of_run][:, None] + number[:, None]
    position = np.minimum(position, lengths[list_of_run][:, None] - 1)
    start = (np.cumsum(lengths) - lengths)[list_of_run]
    return values[start[:, None] + position]


@njit(nogil=True, fastmath=False, forceinline=True)
def nearest_point(
    lists: Neighbours,
    run: int,
    scale: np.float32,
    q: Floats,
    x: NDArray[np.float32],
    weights: NDArray[np.float32],
    row: int,
    k: int,
    dimensions: int,
) -> int:
    """Code of the near point with the least sum of ``weight * (scale * q - x)**2``.

    The first of equals wins. ``run`` is not 0 and from ``lists.runs``; the coordinates are in
    column ``k`` of ``x`` and ``weights`` from ``row`` on; ``q[l]`` is the value of level l, and the
    same of level l + 8, l + 4 where codes have two bits.
    """
    first, count = run >> _COUNT_BITS, run & _COUNT
    bits = 16 // dimensions if dimensions == 8 else 3
    least, where = splat(F32_MAX), splat(np.int32(0))
    for number in range(count):
        codes_here = load_words(lists.codes, first + number)
        total = splat(np.float32(0))
        for i in range(dimensions):
            difference = scale * q - x[row + i, k]
            losses = weights[row + i, k] * difference * difference
            total = total + lookup(losses, codes_here >> np.int32(bits * i))
        is_less = total < least
        least = select(is_less, total, least)
        where = select(is_less, splat(np.int32(number)), where)
    best = first_least(least)
    code: int = lists.codes[first + lane(where, best), best]
    return code
