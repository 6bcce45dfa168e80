"""GPTQ on what real models hand out: dead and huge channels, few tokens, broken numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.calib.correlated import inputs, moments, weighted_error, weights
from zenconvert.calib.solvers import curvature as curvature_module
from zenconvert.calib.solvers.gptq import gptq
from zenconvert.calib.solvers.rtn import rtn
from zenconvert.calib.solvers.solution import GptqSettings, Solved
from zenconvert.model.target import Scheme

SCHEMES = [Scheme(4, 32), Scheme(4, 32, symmetric=False), Scheme(3, None), Scheme(2, 64)]


def good(result: Solved) -> np.ndarray:
    """The dequantized weight, after checks that hold for any result."""
    assert result.values is not None
    values: np.ndarray = result.values.dequantize()
    assert np.isfinite(values).all()
    assert np.isfinite(result.report.error)
    assert result.report.error <= result.report.rtn_error
    assert result.report.f16_headroom > 1
    return values


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_dead_channels(scheme: Scheme) -> None:
    weight, second = weights(16, 128), moments(2048, 128)
    second[::3] = 0
    second[:, ::3] = 0
    result = gptq(weight, scheme, second, 2048)
    values = good(result)
    assert result.report.notes[0] == "43 input channels are never active"
    if scheme.bits == 4:  # weights that nothing speaks for are still rounded, not dropped
        gap = np.abs(values - weight.numpy())[:, ::3]
        assert gap.mean() < 0.15 * np.abs(weight.numpy()).mean()


@pytest.mark.parametrize("factor", [1e3, 1e8, 1e15])
def test_huge_channels(factor: float) -> None:
    weight, values = weights(16, 128), inputs(2048, 128)
    values[:, 5] *= factor**0.5
    second = values.T @ values
    result = gptq(weight, Scheme(4, 32), second, 2048)
    found = torch.from_numpy(good(result))
    nearest = rtn(weight, Scheme(4, 32), importance=second.diagonal()).values
    assert nearest is not None
    error = weighted_error(weight, found, second)
    assert error < weighted_error(weight, torch.from_numpy(nearest.dequantize()), second)


@pytest.mark.parametrize("tokens", [1, 5, 60, 127])
def test_fewer_tokens_than_inputs(tokens: int) -> None:
    weight = weights(16, 128)
    result = gptq(weight, Scheme(4, 32), moments(tokens, 128), tokens)
    good(result)
    assert result.report.method == "gptq"
    assert result.report.rank is not None
    assert 1 <= result.report.rank <= tokens
    assert result.report.damping > 0.1


def test_no_tokens() -> None:
    weight = weights(16, 128)
    result = gptq(weight, Scheme(4, 32), torch.zeros(128, 128), 0)
    good(result)
    assert result.report.method == "rtn"
    assert result.report.notes == ("rounded to nearest: no token reached it",)
    plain = rtn(weight, Scheme(4, 32)).values
    assert plain is not None
    assert result.values is not None
    assert np.array_equal(plain.codes, result.values.codes)


def test_no_moments() -> None:
    result = gptq(weights(16, 128), Scheme(4, 32), torch.zeros(128, 128), 10)
    good(result)
    assert "no second moments" in result.report.notes[0]
    result = gptq(weights(16, 128), Scheme(4, 32), torch.full((128, 128), torch.nan), 10)
    good(result)
    assert "no second moments" in result.report.notes[0]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -1.0])
def test_a_broken_channel_is_taken_alone(broken: float) -> None:
    weight, second = weights(16, 128), moments(2048, 128)
    clean = second.clone()
    second[7] = broken
    second[:, 7] = broken
    result = gptq(weight, Scheme(4, 32), second, 2048)
    values = good(result)
    assert result.report.method == "gptq"
    assert result.report.notes == (
        "1 input channels with unusable moments are taken as uncorrelated",
    )
    kept = [i for i in range(128) if i != 7]
    part = clean[kept][:, kept]
    found = weighted_error(weight[:, kept], torch.from_numpy(values)[:, kept], part)
    nearest = rtn(weight, Scheme(4, 32), importance=clean.diagonal()).values
    assert nearest is not None
    other = torch.from_numpy(nearest.dequantize())[:, kept]
    assert found < 0.7 * weighted_error(weight[:, kept], other, part)


def test_broken_moments_between_good_channels() -> None:
    second = moments(2048, 128)
    second[3, 9] = second[9, 3] = torch.inf
    result = gptq(weights(16, 128), Scheme(4, 32), second, 2048)
    good(result)
    assert result.report.method == "rtn"
    assert "not finite between finite channels" in result.report.notes[0]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_groups_of_zeros_and_of_one_number(scheme: Scheme) -> None:
    weight, second = weights(8, 128), moments(2048, 128)
    weight[0] = 0
    weight[1, 32:64] = 0
    weight[2, :64] = 0.125
    weight[3] = -0.125
    values = good(gptq(weight, scheme, second, 2048))
    assert (values[0] == 0).all()


def test_weights_that_float16_cannot_hold() -> None:
    weight, second = weights(8, 128), moments(2048, 128)
    weight[1] *= 1e-6  # scales below the smallest normal half
    good(gptq(weight, Scheme(4, 32), second, 2048))
    weight[2, 3] = 1e6
    result = gptq(weight, Scheme(4, 32), second, 2048)
    assert result.values is None
    assert result.report.method == "keep"
    assert "float16 cannot hold" in result.report.notes[-1]
    weight[2, 3] = torch.nan
    assert gptq(weight, Scheme(4, 32), second, 2048).report.notes == ("the weight is not finite",)


def indefinite(depth: float) -> torch.Tensor:
    """Unit diagonal and a smallest eigenvalue of ``-depth``."""
    second = torch.eye(128)
    second[0, 1] = second[1, 0] = 1 + depth
    return second


def test_more_damping_where_it_is_needed() -> None:
    settings = GptqSettings(damping=0.01)
    result = gptq(weights(16, 128), Scheme(4, 32), indefinite(0.05), 2048, settings=settings)
    assert result.report.method == "gptq"
    assert result.report.damping == pytest.approx(0.1)
    assert result.report.notes == ("factorisation failed in float32 with damping 0.01",)


def test_float64_where_float32_is_too_coarse() -> None:
    size = torch.randint(1, 30, (128,), generator=torch.Generator().manual_seed(0)).float()
    second = torch.outer(size, size)
    above = torch.full((128,), torch.inf)
    for _ in range(4):  # of the smallest steps that float32 has
        second.diagonal().copy_(torch.nextafter(second.diagonal().clone(), above))
    settings = GptqSettings(damping=0.0)
    result = gptq(weights(8, 128), Scheme(4, 32), second, 2048, settings=settings)
    assert result.report.method == "gptq"
    assert result.report.notes == ("factorisation failed in float32 with damping 0",)


def test_rounding_to_nearest_where_nothing_helps() -> None:
    settings = GptqSettings(damping=0.01)
    result = gptq(weights(16, 128), Scheme(4, 32), indefinite(50.0), 2048, settings=settings)
    good(result)
    assert result.report.method == "rtn"
    (note,) = result.report.notes
    for step in (
        "float32 with damping 0.01;",
        "float32 with damping 1;",
        "float64 with damping 1)",
    ):
        assert step in note


def test_rows_that_are_better_rounded_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wrong factor GPTQ loses; the result is then that of rounding to nearest."""
    weight, second = weights(16, 128), moments(2048, 128)

    def wrong(matrix: torch.Tensor, damped: torch.Tensor, _: torch.dtype) -> torch.Tensor:
        matrix += torch.ones_like(matrix).triu(1)
        return damped.sqrt()

    monkeypatch.setattr(curvature_module, "_factor_upper", wrong)
    result = gptq(weight, Scheme(4, 32), second, 2048, settings=GptqSettings(passes=0))
    good(result)
    assert result.report.method == "rtn"
    assert "16 of 16 rows are rounded to nearest" in result.report.notes[-1]
