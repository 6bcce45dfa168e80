"""The nearest points of a codebook (:mod:`.grids`) to each corner of its lattice.

A corner is a choice of one level per coordinate. Rounding weights coordinate by coordinate leads to
a corner that is often no point of the codebook; libggml then takes the best of the near points:
all those at the least distance, or at the two or three least distances. Corners and points are
known by their *codes*, the packed level numbers of :mod:`.grids`.

Source: ``iq2xs_init_impl``, ``iq3xs_init_impl`` and ``iq*_find_best_neighbour`` in ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.arithmetic import F32_MAX
from zenconvert.ggml.blocks.grids import codes
from zenconvert.ggml.blocks.lanes import (
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
_SLAB: Final = 512
"""Corners whose distances are computed at a time: a few megabytes."""


class Neighbours(NamedTuple):
    """The near points of every corner, in runs of sixteen.

    Point p of a list of ``count`` runs is lane ``p // count`` of run ``p % count``: what stands in
    a lower lane comes first in libggml's list, and in one lane what is in an earlier run.
    """

    runs: NDArray[np.int32]
    """[codes of corners]: 0 for a point, else 32 * the first run + the number of runs."""
    codes: NDArray[np.uint16]
    """[runs, 16]: the codes of the near points; the last one fills up its list."""


@cache
def neighbours(codebook: str) -> Neighbours:
    """The lists of one codebook; read-only."""
    bits, dimensions, levels = (3, 4, 8) if codebook.startswith("iq3") else (2, 8, 3)
    shifts = bits * np.arange(dimensions)
    point_codes = codes(codebook)
    points = point_codes[:, None] >> shifts & ((1 << bits) - 1)
    corners = np.indices((levels,) * dimensions).reshape(dimensions, -1).T
    owners, members = _near(corners, points, _DISTANCES[codebook])
    lengths = np.bincount(owners, minlength=len(corners))
    counts = -(-lengths // LANES)
    firsts = np.cumsum(counts) - counts
    runs = np.zeros(1 << bits * dimensions, dtype=np.int32)
    runs[(corners << shifts).sum(axis=1)] = (firsts << _COUNT_BITS | counts) * (counts > 0)
    lists = Neighbours(runs, _laid_out(point_codes[members], lengths, counts))
    for array in lists:
        array.flags.writeable = False
    return lists


def _near(
    corners: NDArray[np.int64], points: NDArray[np.int64], distances: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(corner, point) of every pair of a corner that is no point and a near point.

    Ordered by corner, then distance, then point.
    """
    owners, members = [], []
    for start in range(0, len(corners), _SLAB):
        part = corners[start : start + _SLAB]
        # whole numbers below 2**24: float32 products are exact in any order
        products = part.astype(np.float32) @ points.T.astype(np.float32)
        lengths = (part**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)
        squares = (lengths.astype(np.float32) - 2 * products).astype(np.uint8)
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
    """Lists of ``lengths`` values, one after the other, as ``counts`` runs each: u16[runs, 16]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    position = np.arange(LANES) * counts[owner][:, None] + number[:, None]
    position = np.minimum(position, lengths[owner][:, None] - 1)
    runs: NDArray[np.uint16] = values[(np.cumsum(lengths) - lengths)[owner][:, None] + position]
    return runs


@njit(nogil=True, fastmath=False, forceinline=True)
def nearest_point(
    lists: Neighbours,
    run: int,
    scale: np.float32,
    q: Floats,
    x: NDArray[np.float32],
    x_row: int,
    weights: NDArray[np.float32],
    row: int,
    column: int,
    dimensions: int,
) -> int:
    """Code of the near point with the least sum of ``weight * (scale * q - x)**2``.

    The first of equals wins. ``run`` is a corner's in ``lists.runs``, not 0. The coordinates stand
    in ``column``, from ``x_row`` on in ``x`` and from ``row`` on in ``weights``. Lane l of ``q`` is
    the value of level l modulo the levels that a code can tell apart (eight, or four in eight
    ``dimensions``).
    """
    first, count = run >> _COUNT_BITS, run & _COUNT
    bits = 2 if dimensions == 8 else 3
    least, where = splat(F32_MAX), splat(np.int32(0))
    for number in range(count):
        points = load_words(lists.codes, first + number)
        total = splat(np.float32(0))
        for i in range(dimensions):
            difference = scale * q - x[x_row + i, column]
            losses = weights[row + i, column] * difference * difference
            total = total + lookup(losses, points >> np.int32(bits * i))
        is_less = total < least
        least = select(is_less, total, least)
        where = select(is_less, splat(np.int32(number)), where)
    best = first_least(least)
    code: int = lists.codes[first + lane(where, best), best]
    return code
