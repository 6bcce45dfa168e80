"""AWQ: folding changes nothing, and quantizing loses less after it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.calib.correlated import inputs as activations
from tests.calib.correlated import weighted_error, weights
from zenconvert.calib.solvers.awq import Awq, Balance, awq
from zenconvert.calib.solvers.smoothing import Heads, Inputs, Reader, search_scales
from zenconvert.calib.solvers.solution import AwqSettings
from zenconvert.errors import ConversionFailed
from zenconvert.model.target import Scheme

HIDDEN, FFN, HEADS = 128, 192, Heads(query=4, kv=2)
VALUES = HIDDEN // 4 * 2
SCHEME = Scheme(4, 64)


def known(values: torch.Tensor) -> Inputs:
    """What calibration knows of some inputs float32[tokens, n]."""
    tokens = len(values)
    return Inputs(values.T @ values / tokens, values.abs().mean(0), tokens)


@dataclass
class Toy:
    """A decoder block without attention weights: v is spread over the heads as attention would."""

    weights: dict[str, torch.Tensor]
    biases: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of every linear, and the outputs ``x`` + attention and + mlp."""
        w = self.weights
        normed = x / x.square().mean(1, keepdim=True).sqrt() * w["norm"]
        value = normed @ w["v"].T + self.biases.get("v", 0)
        heads = value.reshape(len(x), 2, 1, -1).expand(-1, -1, 2, -1).reshape(len(x), -1)
        middle = x + heads @ w["o"].T
        second = middle / middle.square().mean(1, keepdim=True).sqrt() * w["norm2"]
        gated = torch.nn.functional.silu(second @ w["gate"].T) * (second @ w["up"].T)
        out = middle + gated @ w["down"].T
        queries = normed @ w["q"].T
        return {"v": normed, "q": normed, "o": heads, "gate": second, "up": second, "down": gated,
                "out": out, "queries": queries}  # fmt: skip


BALANCES = [
    Balance("norm", ("q", "v")),
    Balance("v", ("o",), HEADS),
    Balance("norm2", ("gate", "up")),
    Balance("up", ("down",)),
]


def toy(bias: bool = True) -> Toy:
    made = {
        "norm": 1 + weights(1, HIDDEN, 7)[0] * 5,
        "q": weights(HIDDEN, HIDDEN, 1),
        "v": weights(VALUES, HIDDEN, 2),
        "o": weights(HIDDEN, HIDDEN, 3),
        "norm2": 1 + weights(1, HIDDEN, 8)[0] * 5,
        "gate": weights(FFN, HIDDEN, 4),
        "up": weights(FFN, HIDDEN, 5),
        "down": weights(HIDDEN, FFN, 6),
    }
    half = {name: value.bfloat16().float() for name, value in made.items()}
    biases = {"v": weights(1, VALUES, 9)[0].bfloat16().float()} if bias else {}
    return Toy(half, biases)


LINEARS = ("q", "v", "o", "gate", "up", "down")


def solve(
    block: Toy, x: torch.Tensor, settings: AwqSettings | None = None, scheme: Scheme = SCHEME
) -> Awq:
    seen = block.run(x)
    shared = {id(value): known(value) for value in seen.values()}
    inputs = {name: shared[id(seen[name])] for name in LINEARS}
    return awq(
        block.weights, block.biases, BALANCES, inputs, dict.fromkeys(LINEARS, scheme),
        dtype=torch.bfloat16, settings=settings,
    )  # fmt: skip


def folded(block: Toy, result: Awq, quantized: bool) -> Toy:
    """The block after AWQ, its linears as quantized or as exact as folding leaves them."""
    new = dict(block.weights)
    for name in ("norm", "norm2"):
        new[name] = result.dense[name]
    takes = {"q": "norm", "v": "norm", "gate": "norm2", "up": "norm2", "down": "up"}
    for name in LINEARS:
        if quantized:
            values = result.solved[name].values
            assert values is not None
            new[name] = torch.from_numpy(values.dequantize())
            continue
        columns = HEADS.spread(result.scales["v"]) if name == "o" else result.scales[takes[name]]
        new[name] = new[name] * columns
        if name in result.scales:
            new[name] = new[name] / result.scales[name][:, None]
    biases = {name: result.dense[f"{name}.bias"] for name in block.biases}
    return Toy(new, biases)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_moves_nothing(bias: bool) -> None:
    block, x = toy(bias), activations(512, HIDDEN)
    result = solve(block, x)
    assert result.drift < 1e-6
    for name in ("norm", "norm2"):
        assert torch.equal(result.dense[name], result.dense[name].bfloat16().float())
        assert not torch.equal(result.dense[name], block.weights[name])
    before, after = block.run(x), folded(block, result, quantized=False).run(x)
    for name in ("out", "queries"):
        gap = (after[name] - before[name]).abs().max() / before[name].abs().max()
        assert float(gap) < 2e-5, name
    assert set(result.dense) == {"norm", "norm2"} | ({"v.bias"} if bias else set())
    assert set(result.scales) == {"norm", "v", "norm2", "up"}


def test_less_error_than_gptq_and_rounding_alone() -> None:
    block, x, other = toy(), activations(2048, HIDDEN), activations(2048, HIDDEN, seed=3)
    before = block.run(other)["out"]

    scheme = Scheme(4, 64, symmetric=False)

    def gap(settings: AwqSettings) -> float:
        result = solve(block, x, settings, scheme)
        out = folded(block, result, quantized=True).run(other)["out"]
        for solved in result.solved.values():
            assert solved.report.method == "awq"
        return float((out - before).square().mean() / before.square().mean())

    nearest = {name: _rounded(block, x, name, scheme) for name in LINEARS}
    out = Toy(block.weights | nearest, block.biases).run(other)["out"]
    plain = float((out - before).square().mean() / before.square().mean())
    published, default = gap(AwqSettings(rounding="rtn")), gap(AwqSettings())
    assert published < 0.97 * plain
    assert default < 0.6 * published


def _rounded(block: Toy, x: torch.Tensor, name: str, scheme: Scheme) -> torch.Tensor:
    from zenconvert.calib.solvers.rtn import rtn

    importance = block.run(x)[name].square().mean(0)
    values = rtn(block.weights[name], scheme, importance=importance).values
    assert values is not None
    return torch.from_numpy(values.dequantize())


def test_errors_are_those_of_the_outputs() -> None:
    block, x = toy(), activations(512, HIDDEN)
    settings = (AwqSettings(), AwqSettings(rounding="rtn"))
    for given in settings:
        result = solve(block, x, given)
        seen = block.run(x)["gate"]
        values = result.solved["gate"].values
        assert values is not None
        plain = torch.from_numpy(values.dequantize()) / result.scales["norm2"]
        wanted = weighted_error(block.weights["gate"], plain, seen.T @ seen)
        assert result.solved["gate"].report.error == pytest.approx(wanted, rel=1e-3)


def test_the_diagonal_alone_will_do() -> None:
    """Where only mean squares are known, they weigh, and weights are rounded to nearest."""
    block, x = toy(), activations(512, HIDDEN)
    seen = block.run(x)
    inputs = {}
    for name in LINEARS:
        full = known(seen[name])
        inputs[name] = Inputs(full.moments.diagonal().clone(), full.mean_abs, full.tokens)
    result = awq(
        block.weights, block.biases, BALANCES, inputs, dict.fromkeys(LINEARS, SCHEME),
        dtype=torch.bfloat16,
    )  # fmt: skip
    for solved in result.solved.values():
        assert solved.report.notes == ("scaled channels, rounded to nearest",)
        assert 0 < solved.report.error < 0.02


def test_query_heads_share_the_scales_of_their_values() -> None:
    scale = torch.arange(1.0, 7.0)  # 2 heads of 3
    assert Heads(4, 2).spread(scale).tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert Heads(4, 2).gather(Heads(4, 2).spread(scale)).tolist() == scale.tolist()
    assert Heads(2, 2).spread(scale).tolist() == scale.tolist()


def test_no_scaling_where_it_does_not_help() -> None:
    """Alike channels and weights: no candidate beats scales of 1."""
    signs = torch.randint(0, 2, (64, 64), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    inputs = Inputs(torch.eye(64), torch.ones(64), 100)
    assert search_scales([Reader(signs, inputs, SCHEME)]).tolist() == [1.0] * 64


def test_a_large_channel_is_scaled_up() -> None:
    values = torch.randn(2048, 64, generator=torch.Generator().manual_seed(1))
    values[:, 5] *= 60
    scale = search_scales([Reader(weights(64, 64), known(values), SCHEME)])
    assert int(scale.argmax()) == 5
    assert float(scale[5] / scale.median()) > 1.5


EXPERTS = [f"{e}.{kind}" for e in range(3) for kind in ("gate", "up")]


def experts(dead: int | None) -> tuple[Awq, dict[str, torch.Tensor], dict[str, Inputs]]:
    """A norm, a router and three experts, of which ``dead`` sees no token."""
    x = activations(600, HIDDEN)
    x[:, 7] *= 50
    parts = {
        name: weights(64, HIDDEN, seed).bfloat16().float() for seed, name in enumerate(EXPERTS)
    }
    block = {
        "norm": torch.ones(HIDDEN),
        "router": weights(3, HIDDEN, 50).bfloat16().float(),
        **parts,
    }
    inputs: dict[str, Inputs] = {}
    for expert in range(3):
        given = known(x[expert * 200 :][: 200 - 60 * expert])
        if expert == dead:
            given = Inputs(torch.zeros(HIDDEN, HIDDEN), torch.zeros(HIDDEN), 0)
        inputs |= {f"{expert}.{kind}": given for kind in ("gate", "up")}
    balance = Balance("norm", ("router", *EXPERTS))
    result = awq(
        block, {}, [balance], inputs, dict.fromkeys(EXPERTS, SCHEME), dtype=torch.bfloat16
    )  # fmt: skip
    return result, block, inputs


def test_a_router_is_folded_without_loss_and_not_quantized() -> None:
    result, block, _ = experts(dead=None)
    scale = result.scales["norm"]
    assert bool((scale != 1).any())
    assert torch.equal(scale.log2(), scale.log2().round())
    assert "router" not in result.solved
    router = result.dense["router"]
    assert torch.equal(router, router.bfloat16().float())
    assert torch.equal(router * result.dense["norm"], block["router"] * block["norm"])
    assert result.drift == 0


def test_an_expert_without_tokens_is_scaled_with_the_others_and_rounded_to_nearest() -> None:
    result, block, _ = experts(dead=1)
    solved = result.solved["1.up"]
    assert solved.values is not None
    assert solved.report.notes[0] == "scaled channels, rounded to nearest: no token reached it"
    values = solved.values.dequantize() / result.scales["norm"].numpy()
    gap = np.square(values - block["1.up"].numpy()).sum() / np.square(block["1.up"].numpy()).sum()
    assert gap < 0.015
    assert result.solved["0.up"].report.notes[0] == "scaled channels, rounded by gptq"


def test_a_linear_that_stays_dense_is_folded_without_loss() -> None:
    block, x = toy(bias=False), activations(512, HIDDEN)
    seen = block.run(x)
    names = [name for name in LINEARS if name != "v"]
    inputs = {name: known(seen[name]) for name in names}
    result = awq(
        block.weights, {}, BALANCES, inputs, dict.fromkeys(names, SCHEME), dtype=torch.bfloat16
    )  # fmt: skip
    value = result.dense["v"]
    assert torch.equal(value, value.bfloat16().float())
    restored = value / result.scales["norm"] * result.scales["v"][:, None]
    assert torch.equal(restored, block.weights["v"])


def test_a_weight_that_is_not_finite_is_kept_and_folded() -> None:
    block, x = toy(), activations(512, HIDDEN)
    seen = block.run(x)
    inputs = {name: known(seen[name]) for name in LINEARS}
    block.weights["gate"][0, 0] = torch.inf
    result = awq(
        block.weights, block.biases, BALANCES, inputs, dict.fromkeys(LINEARS, SCHEME),
        dtype=torch.bfloat16,
    )  # fmt: skip
    assert result.solved["gate"].values is None
    assert result.solved["up"].values is not None
    rest = result.dense["gate"][1:] / result.scales["norm2"]
    assert torch.equal(rest, block.weights["gate"][1:])


def test_a_norm_with_dead_channels() -> None:
    block, x = toy(), activations(512, HIDDEN)
    block.weights["norm"][::5] = 0
    result = solve(block, x)
    assert bool((result.dense["norm"][::5] == 0).all())
    assert bool((result.scales["norm"] > 0).all())
    assert result.drift < 1e-6


def test_folding_that_would_lose_something_is_refused() -> None:
    """A dense reader whose numbers the storage dtype cannot hold after scaling."""
    x = activations(512, HIDDEN)
    block = {
        "norm": torch.ones(HIDDEN),
        "dense": torch.full((4, HIDDEN), 6e4),
        "q": weights(32, HIDDEN),
    }
    with pytest.raises(ConversionFailed, match="moved a weight"):
        awq(
            block, {}, [Balance("norm", ("dense", "q"))], {"q": known(x)}, {"q": SCHEME},
            dtype=torch.float16,
        )  # fmt: skip


def test_norms_of_one_plus_their_weight_are_folded_as_they_multiply() -> None:
    """What is stored is one less than what multiplies, and rounded to bfloat16."""
    x = activations(512, HIDDEN)
    norm = (weights(1, HIDDEN, 7)[0] * 5).bfloat16().float()
    matrix = weights(32, HIDDEN)
    balance = Balance("norm", ("q",), one_plus=True)
    result = awq(
        {"norm": norm, "q": matrix}, {}, [balance], {"q": known(x)}, {"q": SCHEME},
        dtype=torch.bfloat16,
    )  # fmt: skip
    stored, scale = result.dense["norm"], result.scales["norm"]
    assert torch.equal(stored, stored.bfloat16().float())
    assert not torch.equal(stored, norm)
    assert result.drift < 1e-6
    before = (x * (1 + norm)) @ matrix.T
    after = (x * (1 + stored)) @ (matrix * scale).T
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5


def test_a_norm_of_one_plus_its_weight_before_a_dense_reader_stays() -> None:
    """Neither powers of two nor quotients would be exact on both sides."""
    x = activations(512, HIDDEN)
    norm = (weights(1, HIDDEN, 7)[0] * 5).bfloat16().float()
    block = {
        "norm": norm,
        "router": weights(4, HIDDEN).bfloat16().float(),
        "q": weights(32, HIDDEN),
    }
    balance = Balance("norm", ("router", "q"), one_plus=True)
    result = awq(block, {}, [balance], {"q": known(x)}, {"q": SCHEME}, dtype=torch.bfloat16)
    assert bool((result.scales["norm"] == 1).all())
    assert torch.equal(result.dense["norm"], norm)
    assert torch.equal(result.dense["router"], block["router"])
