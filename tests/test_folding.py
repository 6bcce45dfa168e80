"""AWQ's channel scales by the table of every family: folded, a model computes what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.differential import runs
from tests.families import SHALLOW
from zenconvert import convert, open_checkpoint
from zenconvert.calib.layer_solver import AwqLayer, FileLayer
from zenconvert.calib.solvers import awq
from zenconvert.calib.solvers.smoothing import Heads, Reader
from zenconvert.calib.solvers.solution import Solved, keep
from zenconvert.calib.statistics import InputStatistics
from zenconvert.model.target import Scheme
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.reference import Reference
from zenconvert.solve.store import LayerSolution, SolvedStore
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

TEXT = runs.ids(24, 11)


class Nothing:
    """Statistics of no tokens: scales are made up, and nothing is rounded."""

    def of(self, module: str, *, moments: bool) -> InputStatistics:
        del moments
        none = np.zeros((1, 1), np.float32)
        count = np.zeros(1, np.int64)
        return InputStatistics(
            module, (module,), np.ones(1), count, none, none, torch.zeros(1, 1)
        )  # fmt: skip


def made_up(
    readers: Sequence[Reader], heads: Heads | None = None, *, powers_of_two: bool = False
) -> torch.Tensor:
    """In the place of the search: scales of all sizes from 1/4 to 4."""
    channels = readers[0].weight.shape[1]
    if heads is not None:
        channels = channels * heads.kv // heads.query
    steps = torch.arange(channels) % 5 - 2
    return torch.exp2(steps.float() if powers_of_two else steps * 0.37)


def unrounded(
    block: object, inputs: object, schemes: Mapping[str, object], settings: object
) -> dict[str, Solved]:
    """In the place of rounding: every matrix stays as folding leaves it."""
    del block, inputs, settings
    return {name: keep("only folded") for name in schemes}


@pytest.mark.parametrize("name", SHALLOW)
def test_what_is_folded_computes_the_same(
    name: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In float32, so that nothing is rounded, and by transformers' own modules."""
    source = tmp_path / "floats"
    convert(folder(name), source, "hf:f32")
    checkpoint = open_checkpoint(source)
    reference, store = Reference(checkpoint, logical_rows, device="cpu"), SolvedStore(tmp_path)
    grids = {
        n.name: Scheme(4, 32) for n in reference.names if n.is_weight and n.module.role == "linear"
    }
    monkeypatch.setattr(awq, "search_scales", made_up)
    monkeypatch.setattr(awq, "_round", unrounded)
    changed: dict[str, Any] = {}
    for layer in range(reference.layers):
        one = FileLayer(layer, cast(Any, Nothing()), reference)
        found = AwqLayer(checkpoint, grids).add(one).changed
        changed |= found
        store.put(layer, LayerSolution({}, {n: v.numpy() for n, v in found.items()}))
    for layer in range(reference.layers):
        there = {name.module.name for name in reference.by_layer[layer]}
        for row in checkpoint.architecture.balances:
            smooth = str(row.smooth).format(layer=layer, expert=0) + ".weight"
            if smooth in checkpoint.tensors and there.issuperset(row.into):
                assert not torch.equal(changed[smooth], reference.load(smooth)), smooth
    windows = [Window("a", "en", tuple(TEXT))]
    engine = TorchEngine(
        store.over(checkpoint, range(reference.layers)),
        windows,
        device="cpu",
        progress=lambda done, total: None,
    )
    expected = runs.in_transformers(source, TEXT)
    gap = np.abs(engine.logits(0, 0, len(TEXT)).numpy() - expected).max()
    assert gap < 1e-3 * expected.std(), gap
