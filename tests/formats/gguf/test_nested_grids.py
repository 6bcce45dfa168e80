"""Blocks taken apart and put together: the same bytes, and the numbers that gguf decodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from zenconvert.calib.solvers.nested_tensors import NestedTensors
from zenconvert.ggml.encoding import encoding_named
from zenconvert.ggml.nested_grids import GRIDS
from zenconvert.ggml.types import BY_NAME

COLUMNS = 1024


@pytest.mark.parametrize("name", GRIDS)
def test_any_bytes_come_back(name: str) -> None:
    encoding = encoding_named(name)
    rng = np.random.default_rng(GRIDS[name].block)
    data = rng.integers(0, 256, (9, encoding.row_bytes(COLUMNS)), np.uint8)
    with np.errstate(invalid="ignore"):
        rows = encoding.on_nested(data, COLUMNS)
        assert np.array_equal(encoding.of_nested(rows), data)


@pytest.mark.parametrize("name", GRIDS)
def test_numbers_are_those_that_gguf_decodes(name: str) -> None:
    encoding = encoding_named(name)
    values = np.random.default_rng(1).standard_normal((5, COLUMNS)).astype(np.float32)
    data = encoding.encode(values, None)
    theirs = quants.dequantize(data, GGMLQuantizationType(BY_NAME[name].id))
    rows = encoding.on_nested(data, COLUMNS)
    assert np.array_equal(rows.dequantize(), theirs)
    grid = rows.grid
    assert grid.scales[0] <= rows.scales.min() <= rows.scales.max() <= grid.scales[1]
    assert int(rows.codes.max()) < len(grid.levels)


@pytest.mark.parametrize("name", ["q4_k", "iq4_xs", "q5_1"])
def test_panels_of_columns_are_put_back(name: str) -> None:
    encoding = encoding_named(name)
    values = np.random.default_rng(2).standard_normal((4, COLUMNS)).astype(np.float32)
    data = encoding.encode(values, None)
    decoded = torch.from_numpy(encoding.decode(data, COLUMNS))
    rows = NestedTensors.of(encoding.on_nested(torch.from_numpy(data), COLUMNS))
    assert torch.equal(rows.dequantize(), decoded)
    assert np.array_equal(encoding.of_nested(rows.to_nested()).numpy(), data)
    assert np.array_equal(encoding.of_nested(rows.on_host()), data)
    panel = rows.columns(256, 768)
    assert torch.equal(panel.dequantize(), decoded[:, 256:768])
    panel.codes[:] = 0
    rows.put_columns(256, 768, panel)
    assert not rows.codes[:, 256:768].any()
    assert torch.equal(rows.dequantize()[:, 768:], decoded[:, 768:])
