"""GPTQ against a textbook in float64, against rounding to nearest, and on held-out inputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.calib.correlated import inputs, moments, weighted_error, weights
from zenconvert.calib.solvers import curvature as curvature_module
from zenconvert.calib.solvers.gptq import curvature_of, gptq
from zenconvert.calib.solvers.gptq_rows import GptqRows
from zenconvert.calib.solvers.grid import quantize
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rtn import rtn
from zenconvert.calib.solvers.solution import GptqSettings
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.target import Scheme

Floats = NDArray[np.float64]


def damped(second: Floats, share: float) -> Floats:
    """With a share of the mean, huge values cut, on the diagonal."""
    diagonal = second.diagonal()
    limit = 10 * np.sort(diagonal)[(len(diagonal) - 1) // 2]
    return np.asarray(second + share * np.minimum(diagonal, limit).mean() * np.eye(len(second)))


def textbook(weight: Floats, second: Floats, scales: Floats, zeros: Floats, top: int) -> Floats:
    """GPTQ as in the paper: the inverse's upper Cholesky factor, one column after the other.

    ``scales`` and ``zeros`` are those of every weight; columns come in the order given.
    """
    upper = np.linalg.cholesky(np.linalg.inv(second)).T
    left, values = weight.copy(), np.empty_like(weight)
    for j in range(len(second)):
        codes = np.clip(np.round(left[:, j] / scales[:, j]) + zeros[:, j], 0, top)
        values[:, j] = (codes - zeros[:, j]) * scales[:, j]
        error = (left[:, j] - values[:, j]) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    return values


def solved(
    weight: torch.Tensor, scheme: Scheme, second: torch.Tensor, settings: GptqSettings
) -> GroupedRows:
    values = gptq(weight, scheme, second, 4096, settings=settings).values
    assert values is not None
    return values


def columns_of(found: GroupedRows) -> tuple[Floats, Floats]:
    """Scales and zeros of every weight."""
    index = found.column_groups()
    zeros = np.full(found.scales.shape, found.midpoint) if found.zeros is None else found.zeros
    return found.scales.astype(np.float64)[:, index], zeros.astype(np.float64)[:, index]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (3, 32), (4, 48), (4, None), (8, 160)])
def test_the_codes_are_those_of_the_textbook(
    bits: int, group: int | None, act_order: bool, symmetric: bool
) -> None:
    """With the grids that were found, every code is what the paper's algorithm gives."""
    scheme = Scheme(bits, group, symmetric, act_order)
    weight, second = weights(12, 160), moments(800, 160)
    settings = GptqSettings(damping=0.02, passes=0)
    found = solved(weight, scheme, second, settings)
    prepared = curvature_of(second, 800, scheme, settings)
    assert not isinstance(prepared, str)
    order = prepared.order.numpy()
    scales, zeros = columns_of(found)
    exact = damped(second.double().numpy(), 0.02)[np.ix_(order, order)]
    grids = (scales[:, order], zeros[:, order])
    expected = textbook(weight.double().numpy()[:, order], exact, *grids, scheme.levels - 1)
    got = found.dequantize()[:, order]
    differing = np.abs(got - expected) > 1e-6
    # a tie may fall the other way in float32, and then moves what follows in its row
    assert differing.any(axis=1).sum() <= (2 if bits == 8 else 0)


@pytest.mark.parametrize("scheme", [Scheme(4, 64), Scheme(3, 128, False), Scheme(4, None)], ids=str)
def test_much_less_error_than_rounding_on_held_out_inputs(scheme: Scheme) -> None:
    weight, second, held_out = weights(64, 256), moments(8192, 256), moments(8192, 256, seed=5)
    found = gptq(weight, scheme, second, 8192)
    nearest = rtn(weight, scheme, importance=second.diagonal())
    assert found.values is not None
    assert nearest.values is not None
    ours = weighted_error(weight, torch.from_numpy(found.values.dequantize()), held_out)
    other = weighted_error(weight, torch.from_numpy(nearest.values.dequantize()), held_out)
    assert ours < 0.45 * other
    assert found.report.method == "gptq"
    exact = weighted_error(weight, torch.from_numpy(found.values.dequantize()), second)
    assert found.report.error == pytest.approx(exact, rel=1e-4)


def test_every_descent_lowers_the_damped_error() -> None:
    weight, second = weights(32, 192), moments(4096, 192)
    scheme = Scheme(3, 64, symmetric=False)
    prepared = curvature_of(second, 4096, scheme, GptqSettings(damping=0.01))
    assert not isinstance(prepared, str)
    rows = GptqRows.searched(weight, scheme, prepared, Levels.of(scheme))
    rows.round_columns()
    full = prepared.block(0, 192)
    costs = [((rows.errors @ full) * rows.errors).sum(1)]
    for _ in range(3):
        rows.descend()
        costs.append(((rows.errors @ full) * rows.errors).sum(1))
    for before, after in pairwise(costs):
        assert bool((after <= before * (1 + 1e-5)).all())
    assert float(costs[1].sum()) < 0.99 * float(costs[0].sum())


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 96), (4, 16), (8, 256)])
@pytest.mark.parametrize("act_order", [True, False])
def test_the_numbers_lie_on_the_grid_they_come_with(bits: int, group: int, act_order: bool) -> None:
    scheme = Scheme(bits, group, symmetric=False, act_order=act_order)
    weight, second = weights(8, 360), moments(1024, 360)
    found = solved(weight, scheme, second, GptqSettings(lowest_zero=1))
    assert found.zeros is not None
    assert int(found.zeros.min()) >= 1
    assert found.scales.shape == (8, -(-360 // group))
    assert found.group == group
    assert (found.group_index is not None) == act_order
    assert (found.scales > 0).all()
    assert int(found.codes.max()) < scheme.levels
    nearest = rtn(weight, scheme, importance=second.diagonal(), lowest_zero=1).values
    assert nearest is not None
    values, other = (torch.from_numpy(v.dequantize()) for v in (found, nearest))
    assert weighted_error(weight, values, second) < weighted_error(weight, other, second)


def test_static_groups_are_neighbours_with_the_grids_of_the_weights_as_they_are() -> None:
    weight, second = weights(8, 256), moments(2048, 256)
    settings = GptqSettings(static_groups=True)
    with_order = solved(weight, Scheme(4, 64, act_order=True), second, settings)
    without = solved(weight, Scheme(4, 64), second, settings)
    assert with_order.group_index is None
    assert np.array_equal(with_order.codes, without.codes)
    assert np.array_equal(with_order.scales, without.scales)
    once = solved(weight, Scheme(4, 64), second, replace(settings, passes=0))
    assert np.array_equal(once.scales, without.scales)


def test_the_same_again_and_in_any_company() -> None:
    """Rows do not depend on each other, nor results on who shares the curvature."""
    weight, second = weights(40, 256), moments(2048, 256)
    scheme, settings = Scheme(4, 64), GptqSettings()
    prepared = curvature_of(second, 2048, scheme, settings)
    before = second.clone()
    first = gptq(weight, scheme, prepared, 2048).values  # type: ignore[arg-type]
    again = gptq(weight, scheme, second, 2048).values
    assert first is not None
    assert again is not None
    assert torch.equal(second, before)
    assert np.array_equal(first.codes, again.codes)
    assert np.array_equal(first.scales, again.scales)
    some = gptq(weight[:16], scheme, second, 2048).values
    assert some is not None
    assert (some.codes == first.codes[:16]).mean() > 0.999


def test_moments_may_be_sums_or_means() -> None:
    weight, second = weights(8, 128), moments(1024, 128)
    a = gptq(weight, Scheme(4, 64), second, 1024).values
    b = gptq(weight, Scheme(4, 64), second * 1024, 1024).values
    assert a is not None
    assert b is not None
    assert np.array_equal(a.codes, b.codes)


def test_damping_grows_as_tokens_get_few() -> None:
    """Tokens of one text resemble each other: few of them say little about many inputs, and GPTQ
    that believes them is worse than rounding on other texts."""
    weight, held_out = weights(64, 256), moments(8192, 256, seed=9)
    random = torch.Generator().manual_seed(4)
    topics = inputs(20, 256, seed=2).repeat_interleave(10, dim=0)
    tokens = topics + topics.std(0) * torch.randn(200, 256, generator=random)
    few = tokens.T @ tokens / 200
    nearest = rtn(weight, Scheme(4, 64), importance=few.diagonal()).values
    careless = gptq(weight, Scheme(4, 64), few, 200, settings=GptqSettings(damping=0.001)).values
    found = gptq(weight, Scheme(4, 64), few, 200)
    assert nearest is not None
    assert careless is not None
    assert found.values is not None
    errors = [
        weighted_error(weight, torch.from_numpy(v.dequantize()), held_out)
        for v in (found.values, nearest, careless)
    ]
    assert errors[0] < 1.05 * errors[1] < 0.5 * errors[2]
    shares = [curvature_module.adaptive_damping(256, 1 << bit) for bit in range(6, 20)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == 0.01
    assert found.report.damping == curvature_module.adaptive_damping(256, 200)


def test_blocked_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """R·Rᵀ is the damped matrix, in float32 and in float64, however it is cut into blocks."""
    second = moments(700, 90)
    for block, dtype in ((16, torch.float32), (90, torch.float32), (32, torch.float64)):
        monkeypatch.setattr(curvature_module, "_BLOCK", block)
        matrix = second.clone()
        larger = second.diagonal() * 1.01
        roots = curvature_module._factor_upper(matrix, larger, dtype)
        assert roots is not None
        upper = (matrix.triu(1) + torch.eye(90)) * roots
        full = second - torch.diag(second.diagonal()) + torch.diag(larger)
        assert torch.allclose(upper @ upper.T, full, rtol=1e-4, atol=1e-5)
        assert torch.equal(matrix.tril(), second.tril())


def test_the_quadratic_form_and_the_gradient() -> None:
    second = moments(2000, 150)
    prepared = curvature_of(second, 2000, Scheme(4, 32), GptqSettings(damping=0.1))
    assert not isinstance(prepared, str)
    order = prepared.order
    exact = second[order][:, order].double() * float(prepared.diagonal.max() / second.max())
    errors = weights(5, 150, seed=3)
    wanted = ((errors.double() @ exact) * errors).sum(1)
    assert torch.allclose(prepared.quadratic(errors), wanted, rtol=1e-5)
    wanted = errors.double() @ torch.from_numpy(damped(exact.numpy(), 0.1))
    gradient = prepared.gradient(errors, 40, 90)
    assert torch.allclose(gradient.double(), wanted[:, 40:90], atol=1e-5)


def test_values_at_the_ends_of_the_grid() -> None:
    target = torch.tensor([[-100.0, -8.4, -0.5, 0.5, 1.5, 7.4, 100.0]])
    values = quantize(target, torch.ones(1, 1), torch.full((1, 1), 8.0), 15)
    assert values.tolist() == [[-8, -8, 0, 0, 2, 7, 7]]


def test_the_same_bits_for_any_number_of_threads() -> None:
    weight, second = weights(700, 256), moments(2048, 256)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(solved(weight, Scheme(4, 64), second, GptqSettings()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert np.array_equal(found[0].codes, other.codes)
        assert np.array_equal(found[0].scales, other.scales)
