"""The walk's statistics are those of the whole model, and its contract holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.calib.independent import Seen, activations
from tests.tiny import raw_model
from zenconvert import open_checkpoint
from zenconvert.calib.coverage import language_coverage
from zenconvert.calib.reference import Reference
from zenconvert.calib.selection import Selection
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import Settings, walk
from zenconvert.calib.windows import Window
from zenconvert.recoding import logical_rows

LENGTHS = {"en": (40, 7, 64), "zh": (33, 64), "fr": (2, 90)}


def selection(weights: Sequence[float] = (1, 1, 1), vocabulary: int = 512) -> Selection:
    random = np.random.default_rng(5)
    windows = [
        Window(f"{language}-{n}", language, tuple(random.integers(0, vocabulary, n).tolist()))
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
    return Reference(open_checkpoint(folder), logical_rows, device="cpu")


def gather(folder: Path, chosen: Selection, **settings: Any) -> dict[str, InputStatistics]:
    found: dict[str, InputStatistics] = {}
    for part in walk(reference(folder), chosen, Settings(**settings)):
        found |= part.inputs
    return found


def assert_sums(found: dict[str, InputStatistics], seen: Seen, languages: Sequence[str]) -> None:
    for name, item in found.items():
        for number, language in enumerate(languages):
            rows = seen[name, language]
            assert item.tokens[number] == len(rows), (name, language)
            np.testing.assert_allclose(
                item.squares[number], np.square(rows).sum(0), rtol=1e-3, atol=1e-9
            )
            np.testing.assert_allclose(
                item.magnitudes[number], np.abs(rows).sum(0), rtol=1e-3, atol=1e-9
            )


@pytest.mark.parametrize("family", ["qwen2", "llama3", "mistral", "mixtral"])
def test_sums_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", family)
    chosen = selection(weights=(1, 2, 0.5))
    seen = activations(folder, chosen.windows)
    found = gather(folder, chosen, moments=True)
    assert_sums(found, seen, chosen.languages)
    assert {name for name, _ in seen} == set(found)
    for name, item in found.items():
        if name.endswith("router"):
            assert item.moments is None
            continue
        expected = sum(
            weight * seen[name, language].T @ seen[name, language]
            for language, weight in zip(chosen.languages, chosen.token_weights, strict=True)
        )
        assert item.moments is not None
        np.testing.assert_allclose(
            item.moments.numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
        )
        assert torch.equal(item.moments, item.moments.T)
