"""Every reader keeps to its contract: it returns or raises ZenError, soon, and touches nothing."""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import seeded, targets
from tests.fuzz.target import Bench

pytestmark = pytest.mark.filterwarnings("ignore")
SECONDS = 20.0
"""Of the processor for an input: ten times what is right, for code that is compiled meanwhile."""
INPUTS = {True: 1000, False: 250}
"""By whether inputs are cheap: a second of the processor for most targets."""


@pytest.mark.parametrize("name", targets())
def test_seeded_inputs(name: str) -> None:
    target = targets()[name]
    bench = Bench(target, SECONDS)
    try:
        assert bench.plain() is None
        tally = seeded(bench, range(INPUTS[target.cheap]))
    finally:
        bench.close()
    assert tally.inputs == INPUTS[target.cheap]
    told = [f"{fault.kind} {fault.place}: {fault.text}" for fault in tally.first.values()]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("name", targets())
def test_the_unchanged_input_is_read(name: str) -> None:
    target = targets()[name]
    bench = Bench(target)
    try:
        target.read(bench.folder)
    finally:
        bench.close()
