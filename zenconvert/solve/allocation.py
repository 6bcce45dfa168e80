"""Which candidate every tensor takes, so that all together lose least in so many bytes.

Losses add up, so it is a multiple-choice knapsack. Along the lower convex hull of every tensor's
candidates, steps are taken in the order of what a byte of them saves: that is the optimum for every
sum of bytes that it passes (a Lagrangian with a falling price of bytes). What is left in the end is
filled greedily, with any candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store a tensor."""

    nbytes: int
    loss: float
    """What its errors cost, in any unit that adds up over tensors; finite, not negative."""


Candidates = Sequence[Candidate]
"""Of one tensor; at least one."""


def smallest(tensors: Sequence[Candidates]) -> int:
    """Bytes that no choice goes below."""
    return sum(min(one.nbytes for one in candidates) for candidates in tensors)


def largest(tensors: Sequence[Candidates]) -> int:
    """Bytes beyond which nothing can be gained."""
    return sum(candidates[_hull(candidates)[-1]].nbytes for candidates in tensors)


def allocate(tensors: Sequence[Candidates], nbytes: int) -> list[int]:
    """The place of the candidate that each tensor takes, in at most so many bytes.

    No tensor could take a better candidate in what is left; and the losses exceed those of the best
    choice there is by less than one step of one tensor along its hull saves. Raises ValueError for
    fewer bytes than :func:`smallest`.
    """
    chosen, left = _begin(tensors, nbytes)
    for number, place in _steps(tensors):
        more = tensors[number][place].nbytes - tensors[number][chosen[number]].nbytes
        if more > left:
            break  # what comes after it is not the optimum of any sum
        chosen[number], left = place, left - more
    _fill(tensors, chosen, left)
    return chosen


def total(tensors: Sequence[Candidates], chosen: Sequence[int]) -> float:
    """The sum of losses of a choice."""
    return sum(c[place].loss for c, place in zip(tensors, chosen, strict=True))


def _begin(tensors: Sequence[Candidates], nbytes: int) -> tuple[list[int], int]:
    """The smallest candidates, and what they leave of so many bytes."""
    left = nbytes - smallest(tensors)
    if left < 0:
        raise ValueError(f"{nbytes} bytes are {-left} too few")
    return [_hull(candidates)[0] for candidates in tensors], left


def _hull(candidates: Candidates) -> list[int]:
    """Places on the lower convex hull, from the fewest bytes to the least loss."""
    order = sorted(range(len(candidates)), key=lambda n: (candidates[n].nbytes, candidates[n].loss))
    hull: list[int] = []
    for place in order:
        new = candidates[place]
        if hull and new.loss >= candidates[hull[-1]].loss:
            continue
        while len(hull) > 1 and _price(candidates, hull[-2], hull[-1]) <= _price(
            candidates, hull[-1], place
        ):
            hull.pop()
        hull.append(place)
    return hull


def _price(candidates: Candidates, old: int, new: int) -> float:
    """What a byte saves from one candidate to a larger one."""
    saved = candidates[old].loss - candidates[new].loss
    return saved / (candidates[new].nbytes - candidates[old].nbytes)


def _steps(tensors: Sequence[Candidates]) -> list[tuple[int, int]]:
    """(tensor, place) of every step along the hulls, those first whose bytes save most."""
    found = []
    for number, candidates in enumerate(tensors):
        hull = _hull(candidates)
        for old, new in pairwise(hull):
            found.append((-_price(candidates, old, new), number, new))
    return [(number, place) for _, number, place in sorted(found, key=lambda step: step[:2])]


def _fill(tensors: Sequence[Candidates], chosen: list[int], left: int) -> None:
    """Give what is left to whatever saves most with it, again and again."""
    while True:
        best = (0.0, -1, -1)
        for number, candidates in enumerate(tensors):
            now = candidates[chosen[number]]
            for place, one in enumerate(candidates):
                if one.nbytes - now.nbytes <= left:
                    best = max(best, (now.loss - one.loss, number, place))
        saved, number, place = best
        if saved <= 0:
            return
        left -= tensors[number][place].nbytes - tensors[number][chosen[number]].nbytes
        chosen[number] = place
