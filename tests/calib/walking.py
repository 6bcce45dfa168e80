"""Windows and walks that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenconvert import open_checkpoint
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import WalkSettings, walk
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.reference import Reference
from zenconvert.texts.coverage import language_coverage
from zenconvert.texts.selection import Selection
from zenconvert.texts.windows import Window

LENGTHS = {"en": (40, 7, 64), "zh": (33, 64), "fr": (2, 90)}


def selection(weights: Sequence[float] = (1, 1, 1)) -> Selection:
    """Made-up windows of the vocabulary of tiny models."""
    random = np.random.default_rng(5)
    windows = [
        Window(f"{language}-{n}", language, tuple(random.integers(0, 512, n).tolist()))
        for language, lengths in LENGTHS.items()
        for n in lengths
    ]
    coverage = [
        language_coverage(
            code, [[w] for w in windows if w.language == code], unused=0, cut=0, vocabulary=512
        )
        for code in LENGTHS
    ]
    return Selection(tuple(windows), tuple(LENGTHS), tuple(map(float, weights)), tuple(coverage))


def reference(folder: Path) -> Reference:
    """The model of a folder."""
    return Reference(open_checkpoint(folder), logical_rows, device="cpu")


def gather(folder: Path, chosen: Selection, **settings: Any) -> dict[str, InputStatistics]:
    """All statistics of a walk."""
    found: dict[str, InputStatistics] = {}
    for part in walk(reference(folder), chosen, WalkSettings(**settings)):
        found |= part.inputs
    return found


def assert_same(found: dict[str, InputStatistics], expected: dict[str, InputStatistics]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, item in expected.items():
        for part in ("tokens", "squares", "magnitudes"):
            np.testing.assert_array_equal(getattr(found[name], part), getattr(item, part), name)
        ours, theirs = found[name].moments, item.moments
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), name)
