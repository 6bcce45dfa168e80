"""What ``test_cuda_kernels`` runs in a process where Triton interprets kernels."""

from __future__ import annotations

import pytest
import torch

from zenconvert.calib.solvers import grid, kernels, nested_fused, nested_rows, sweep
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.nested import NestedCurvature, nested_curvature
from zenconvert.calib.solvers.nested_tensors import NestedTensors
from zenconvert.ggml.encoding import encoding_named

ROWS = 2


def problem(columns: int) -> tuple[torch.Tensor, torch.Tensor, NestedCurvature]:
    """Weights, what the columns count, and second moments of directions of unlike strength."""
    random = torch.Generator().manual_seed(columns)
    strengths = torch.logspace(0, -1.5, columns)
    mixing = torch.randn(columns, columns, generator=random) / columns**0.5
    x = (torch.randn(8 * columns, columns, generator=random) * strengths) @ mixing
    weight = torch.randn(ROWS, columns, generator=random) * 0.05
    weight[1, :32] = 0
    return weight, x.square().mean(0), nested_curvature(x.T @ x, len(x))


@pytest.mark.parametrize(("name", "columns"), [("q4_k", 256), ("q4_0", 64), ("iq4_nl", 32)])
def test_nested_grids(name: str, columns: int) -> None:
    weight, importance, shared = problem(columns)
    encoding, panel = encoding_named(name), shared.panels[0]
    data = encoding.encode(weight.numpy(), importance.numpy())
    host, device = (
        NestedTensors.of(encoding.on_nested(torch.from_numpy(data), columns)) for _ in range(2)
    )
    lost, there = torch.empty_like(weight), torch.empty_like(weight)
    nested_rows._settle(weight.clone(), weight, panel, host, lost)
    nested_fused.settle(weight.clone(), weight, panel.feedback, device, there)
    assert torch.equal(host.codes, device.codes)
    assert torch.equal(lost, there)
    assert shared.curvature is not None
    slope = shared.curvature.gradient(lost, 0, columns)
    fused_slope, values, fused_values = slope.clone(), host.dequantize(), device.dequantize()
    nested_rows._descend(slope, panel, values, host)
    nested_fused.descend(fused_slope, panel.moments, fused_values, device)
    for mine, theirs in zip(host._tensors(), device._tensors(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(device.dequantize(), fused_values)
    torch.testing.assert_close(fused_slope, slope, rtol=1e-4, atol=1e-7)
    assert float(shared.lost(weight - values).sum()) < float(shared.lost(lost).sum())


@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_of_one_group(symmetric: bool) -> None:
    levels = Levels(15, symmetric)
    weight, importance, shared = problem(64)
    scale, zero = grid.search(weight, importance, levels)
    found = kernels.search_rows(weight, importance, levels)
    assert torch.equal(found[0], scale)
    assert torch.equal(found[1], zero)
    feedback = shared.panels[0].feedback
    operands = (weight, weight, feedback, scale[:, None], zero[:, None], 15)
    torch.testing.assert_close(kernels.sweep_rows(*operands), sweep.sweep(*operands))
    trial = (weight, weight, feedback, importance, torch.stack([scale, scale * 0.9]), zero, 15)
    torch.testing.assert_close(kernels.trial_rows(*trial), sweep.trials(*trial))
