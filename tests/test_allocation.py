"""Which candidates lose least in so many bytes, beside every choice there is."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest

from zenconvert.solve.allocation import Candidate, allocate, largest, smallest, total

Tensors = list[list[Candidate]]


def drawn(seed: int) -> Tensors:
    """Some tensors of a few candidates each; of some, larger ones lose more."""
    generator = np.random.default_rng(seed)
    tensors = []
    for _ in range(generator.integers(1, 6)):
        count = generator.integers(1, 5)
        sizes = generator.integers(1, 40, count)
        losses = generator.exponential(size=count) * 2.0 ** -(sizes / 8)
        if generator.random() < 0.2:
            losses = np.zeros(count)
        tensors.append([Candidate(int(s), float(x)) for s, x in zip(sizes, losses, strict=True)])
    return tensors


def size(tensors: Tensors, chosen: list[int] | tuple[int, ...]) -> int:
    """Bytes of a choice."""
    return sum(c[place].nbytes for c, place in zip(tensors, chosen, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_choices_are_near_the_best_and_full(seed: int) -> None:
    tensors = drawn(seed)
    every = [(size(tensors, c), total(tensors, c)) for c in product(*map(range, map(len, tensors)))]
    least, most = smallest(tensors), largest(tensors)
    assert least == min(nbytes for nbytes, _ in every)
    step = max(c[0].loss - c[-1].loss for c in map(by_size, tensors))
    for nbytes in {least, (least + most) // 2, most - 1, most, most + 7} - set(range(least)):
        chosen = allocate(tensors, nbytes)
        used, lost = size(tensors, chosen), total(tensors, chosen)
        best = min(x for used_by_it, x in every if used_by_it <= nbytes)
        assert used <= nbytes
        assert best <= lost <= best + step + 1e-12
        if nbytes >= most:
            assert lost == pytest.approx(min(x for _, x in every), abs=1e-12)
        for number, candidates in enumerate(tensors):  # nothing else fits that loses less
            now = candidates[chosen[number]]
            assert not any(
                one.loss < now.loss and used - now.nbytes + one.nbytes <= nbytes
                for one in candidates
            )


def by_size(candidates: list[Candidate]) -> list[Candidate]:
    """Those that lose less than all smaller ones, the smallest first."""
    found, lost = [], inf
    for one in sorted(candidates, key=lambda c: (c.nbytes, c.loss)):
        if one.loss < lost:
            found.append(one)
            lost = one.loss
    return found


def test_more_bytes_never_lose_more_along_the_hull() -> None:
    tensors = [[Candidate(b, 4.0**-b * w) for b in range(2, 9)] for w in (1.0, 10.0, 0.1, 3.0)]
    losses = [total(tensors, allocate(tensors, b)) for b in range(smallest(tensors), 33)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == total(tensors, [6] * 4)


def test_too_few_bytes_are_refused() -> None:
    tensors = drawn(1)
    with pytest.raises(ValueError, match="1 too few"):
        allocate(tensors, smallest(tensors) - 1)
