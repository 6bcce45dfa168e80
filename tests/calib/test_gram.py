"""Second moments in tiles are those of one product."""

from __future__ import annotations

import pytest
import torch

from tests.calib.correlated import inputs
from zenconvert.calib import gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [32, 40, 4096])
def test_tiles(tile: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_TILE", tile)
    moments = torch.zeros(100, 100)
    chunks = [inputs(50, 100, seed).to(dtype) for seed in range(3)]
    for chunk in chunks:
        gram.accumulate(moments, chunk)
    gram.mirror(moments)
    every = torch.cat(chunks).double()
    assert torch.equal(moments, moments.T)
    assert torch.allclose(moments.double(), every.T @ every, rtol=1e-5, atol=1e-4)
