"""Rounding to nearest: exact on the bytes it hands out, and better than the full range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.calib.correlated import weights
from zenconvert.calib.solvers.grid import search
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rtn import nearest, rtn
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.target import Scheme

SCHEMES = [
    Scheme(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (16, 128, 1024, None)
    for symmetric in (True, False)
]


def solve(weight: torch.Tensor, scheme: Scheme, **options: object) -> GroupedRows:
    values = rtn(weight, scheme, **options).values  # type: ignore[arg-type]
    assert values is not None
    return values


def plain(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Every group over its full range, in float64."""
    out = np.empty_like(weight)
    group = scheme.group or weight.shape[1]
    top = scheme.levels - 1
    for begin in range(0, weight.shape[1], group):
        part = weight[:, begin : begin + group]
        high = np.maximum(part.max(1, keepdims=True), 0)
        low = np.minimum(part.min(1, keepdims=True), 0)
        if scheme.symmetric:
            scale, zero = np.maximum(high, -low) * 2 / top, np.float64(scheme.levels // 2)
        else:
            scale = (high - low) / top
            zero = np.round(-low / scale)
        scale = scale.astype(np.float16).astype(np.float64)
        codes = np.clip(np.round(part / scale) + zero, 0, top)
        out[:, begin : begin + group] = (codes - zero) * scale
    return out


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_less_error_than_the_full_range(scheme: Scheme) -> None:
    weight = weights(24, 1100)
    found = solve(weight, scheme)
    assert found.encoding.symmetric == scheme.symmetric
    assert found.scales.dtype == np.float16
    assert (found.scales > 0).all()
    assert found.scales.shape == (24, -(-1100 // (scheme.group or 1100)))
    assert int(found.codes.max()) < scheme.levels
    exact = weight.double().numpy()
    error = np.square(exact - found.dequantize()).sum()
    assert error <= np.square(exact - plain(exact, scheme)).sum() * (1 + 1e-6)


def test_codes_are_the_nearest_of_the_scales_in_the_file() -> None:
    weight = weights(16, 256) * 1e-5  # scales are subnormal halves: rounding them matters
    found = solve(weight, Scheme(4, 64))
    scale = found.scales.astype(np.float64).repeat(64, axis=1)
    nearest = np.clip(np.round(weight.double().numpy() / scale) + 8, 0, 15)
    assert np.array_equal(nearest, found.codes)


def test_importance_decides_where_the_error_goes() -> None:
    weight = weights(64, 128)
    importance = torch.ones(128)
    importance[::8] = 1000
    plain_gap = (weight.numpy() - solve(weight, Scheme(3, 128)).dequantize())[:, ::8]
    given = solve(weight, Scheme(3, 128), importance=importance)
    gap = (weight.numpy() - given.dequantize())[:, ::8]
    assert np.square(gap).sum() < 0.7 * np.square(plain_gap).sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_lowest_zero_is_respected(bits: int) -> None:
    weight = weights(32, 128).abs()
    found = solve(weight, Scheme(bits, 32, symmetric=False), lowest_zero=1)
    assert found.zeros is not None
    assert int(found.zeros.min()) == 1
    free = solve(weight, Scheme(bits, 32, symmetric=False))
    assert free.zeros is not None
    assert int(free.zeros.min()) == 0


def test_groups_of_zeros_and_of_one_number() -> None:
    weight = torch.zeros(4, 96)
    weight[1, 32:64] = 0.25
    weight[2, 32:64] = -3.0
    for scheme in (Scheme(4, 32), Scheme(4, 32, symmetric=False)):
        values = solve(weight, scheme).dequantize()
        assert np.isfinite(values).all()
        assert np.allclose(values, weight.numpy(), rtol=2e-3)
        assert (values[0] == 0).all()


def test_act_order_groups_by_importance() -> None:
    weight = weights(8, 100)
    importance = torch.rand(100, generator=torch.Generator().manual_seed(0))
    found = solve(weight, Scheme(4, 32, act_order=True), importance=importance)
    assert found.group_index is not None
    order = np.argsort(-importance.numpy(), kind="stable")
    assert np.array_equal(found.group_index[order], np.arange(100) // 32)
    assert weighted(weight, found) < 0.01


def weighted(weight: torch.Tensor, found: GroupedRows) -> float:
    gap = weight.numpy() - found.dequantize()
    return float(np.square(gap).sum() / np.square(weight.numpy()).sum())


def test_unusable_importance_is_said() -> None:
    weight = weights(4, 32)
    importance = torch.ones(32)
    importance[3] = torch.nan
    report = rtn(weight, Scheme(4, 32), importance=importance).report
    assert "unusable importance" in report.notes[0]
    report = rtn(weight, Scheme(4, 32), importance=torch.zeros(32)).report
    assert "all inputs count alike" in report.notes[0]


def test_what_cannot_be_quantized_is_kept() -> None:
    weight = weights(4, 32)
    weight[0, 0] = torch.inf
    result = rtn(weight, Scheme(4, 32))
    assert result.values is None
    assert result.report.method == "keep"
    weight[0, 0] = 3e5
    result = rtn(weight, Scheme(4, 32))
    assert result.values is None
    assert "float16" in result.report.notes[-1]
    weight[0, 0] = 3e4
    report = rtn(weight, Scheme(4, 32)).report
    assert 1 < report.f16_headroom < 3
    assert report.largest_scale > 1000


def test_searched_scales_survive_extreme_rows() -> None:
    target = torch.tensor([[1e30, -1e30, 1.0, 0.0], [1e-30, 0, 0, -1e-30], [65504.0, 1, 1, 1]])
    for symmetric in (True, False):
        scale, zero = search(target, torch.ones(4), Levels(15, symmetric))
        assert bool(scale.isfinite().all())
        assert bool((scale > 0).all())
        assert torch.equal(scale, scale.half().float())
        assert bool(((zero >= 0) & (zero <= 15)).all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_one_of_several_workers_finds_the_same(scheme: Scheme, weighted: bool) -> None:
    """Whose single pass over the numbers shares no step with the other but the search."""
    weight = weights(24, 1100)
    importance = torch.rand(1100) if weighted else None
    found, expected = (
        nearest(weight, scheme, importance=importance),
        solve(weight, scheme, importance=importance),
    )
    assert found is not None
    for name in ("codes", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_worker_keeps_what_is_not_finite(value: float) -> None:
    weight = weights(24, 1100)
    weight[5, 1099] = value
    assert nearest(weight, Scheme(4, 128)) is None
