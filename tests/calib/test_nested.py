"""GPTQ on ggml's blocks: less error than llama.cpp's own rounding, whatever the statistics are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from zenconvert.calib.solvers.nested import nested_curvature, nested_gptq
from zenconvert.calib.solvers.solution import Filled
from zenconvert.ggml.encoding import encoding_named
from zenconvert.ggml.nested_grids import GRIDS
from zenconvert.ggml.types import BY_NAME

ROWS, COLUMNS, TOKENS = 96, 512, 2000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in production."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(columns: int = COLUMNS, tokens: int = TOKENS, seed: int = 0) -> torch.Tensor:
    """Activations with directions of very different strength."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    strengths = torch.logspace(0, -1.5, columns)
    plain = torch.randn(tokens, columns, generator=generator)
    mixed = (plain * strengths) @ mixing
    return mixed / math.sqrt(columns)


def weights(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Some rows."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.05


def solve(weight: torch.Tensor, name: str, x: torch.Tensor) -> Filled:
    """From activations float32[tokens, in]."""
    importance = x.square().mean(0).numpy()
    curvature = nested_curvature(x.T @ x, len(x))
    return nested_gptq(weight, encoding_named(name), curvature, importance)


def decoded(solved: Filled, name: str) -> torch.Tensor:
    """What gguf makes of the bytes."""
    kind = GGMLQuantizationType(BY_NAME[name].id)
    return torch.from_numpy(quants.dequantize(solved.values.data, kind))


def output_error(weight: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> float:
    """Of the outputs, relative, in float64."""
    lost, whole = x.double() @ (weight - values).T.double(), x.double() @ weight.T.double()
    return float(lost.square().sum() / whole.square().sum())


@pytest.mark.parametrize("name", GRIDS)
def test_outputs_are_nearer_than_after_rounding(name: str) -> None:
    weight, x = weights(), inputs()
    solved = solve(weight, name, x)
    rounded = encoding_named(name).encode(weight.numpy(), x.square().mean(0).numpy())
    kind = GGMLQuantizationType(BY_NAME[name].id)
    theirs = output_error(weight, torch.from_numpy(quants.dequantize(rounded, kind)), x)
    ours = output_error(weight, decoded(solved, name), x)
    assert ours < 0.6 * theirs
    assert solved.report.error == pytest.approx(ours, rel=1e-3)
    assert solved.report.rtn_error == pytest.approx(theirs, rel=1e-3)
    assert solved.report.method == "gptq"


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "q4_0"])
def test_descent_goes_on_where_feedback_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weights(), inputs()
    whole = solve(weight, name, x).report.error
    monkeypatch.setattr("zenconvert.calib.solvers.nested.descend", lambda *_: None)
    assert whole < 0.97 * solve(weight, name, x).report.error


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k", "iq4_xs"])
def test_few_tokens_and_dead_channels_are_never_worse_than_rounding(name: str) -> None:
    weight, x = weights(), inputs(tokens=40)
    x[:, 100:140] = 0
    solved = solve(weight, name, x)
    assert decoded(solved, name).isfinite().all()
    assert solved.report.error <= solved.report.rtn_error
    assert any("never active" in note for note in solved.report.notes)
    fresh = inputs(tokens=4000, seed=0)
    fresh[:, 100:140] = 0
    rounded = encoding_named(name).encode(weight.numpy(), x.square().mean(0).numpy())
    kind = GGMLQuantizationType(BY_NAME[name].id)
    theirs = output_error(weight, torch.from_numpy(quants.dequantize(rounded, kind)), fresh)
    assert output_error(weight, decoded(solved, name), fresh) < 1.1 * theirs


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q6_k", "q4_0", "q4_1", "iq4_nl"])
def test_odd_rows_stay_finite(name: str) -> None:
    weight = weights(8)
    weight[0] = 0
    weight[1] = 0.25
    weight[2] = -0.25
    weight[3, 17] = 40.0
    weight[4] *= 1e-7
    weight[5] = weight[5].abs()
    solved = solve(weight, name, inputs())
    assert decoded(solved, name).isfinite().all()
    assert solved.report.error <= solved.report.rtn_error


@pytest.mark.parametrize(("name", "why"), [("q8_0", "no codes"), ("iq3_s", "no codes")])
def test_types_without_codes_to_choose_are_rounded(name: str, why: str) -> None:
    weight, x = weights(16), inputs()
    solved = solve(weight, name, x)
    rounded = encoding_named(name).encode(weight.numpy(), x.square().mean(0).numpy())
    assert np.array_equal(solved.values.data, rounded)
    assert solved.report.method == "rtn"
    assert why in solved.report.notes[0]


def test_what_no_token_reached_is_rounded() -> None:
    weight, encoding = weights(16), encoding_named("q4_k")
    solved = nested_gptq(weight, encoding, nested_curvature(None, 0), None)
    assert np.array_equal(solved.values.data, encoding.encode(weight.numpy(), None))
    assert solved.report.notes == ("rounded: no token reached it",)


@pytest.mark.parametrize("name", ["q4_k", "iq4_nl"])
def test_bytes_do_not_depend_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weights(1100, 256), inputs(256)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=threads: set(range(n)))
        solved = solve(weight, name, x)
        found.append(solved.values.data)
    assert np.array_equal(found[0], found[1])
