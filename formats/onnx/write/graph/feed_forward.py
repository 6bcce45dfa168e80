"""The second half of a layer: a gated network or a plain one, or experts of which every token
chooses some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from zenconvert.errors import Unsupported
from zenconvert.formats.onnx.write.graph.builder import CONTRIB, GraphBuilder
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.formats.onnx.write.placing import Stack
from zenconvert.formats.onnx.write.stacking import attributes_of
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.model.hyperparameters import Hyperparameters

_SILU: Final = frozenset({"silu", "swish"})
_TANH_GELU: Final = frozenset(
    {"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh", "gelu_accurate"}
)
_SQUARED: Final = "relu2"
"""What configs call the functions that graphs have."""


def gated(
    builder: GraphBuilder,
    weights: Weights,
    name: str,
    activation: str,
    x: ir.Value,
    *,
    rank: int = 3,
    clamped: Sequence[float] = (),
) -> ir.Value:
    """``down(activation(gate(x)) · up(x))``, or what clamped networks make of both."""
    gate, up = (weights.linear(f"{name}.{part}", x, rank=rank) for part in ("gate", "up"))
    with builder.inside(weights.around(f"{name}.gate")):
        if clamped:
            product = _clamped(builder, weights.floats, gate, up, *clamped)
        else:
            product = builder.op("Mul", active(builder, activation, gate), up)
    return weights.linear(f"{name}.down", product, rank=rank)


def plain(
    builder: GraphBuilder, weights: Weights, name: str, activation: str, x: ir.Value
) -> ir.Value:
    """``down(activation(up(x)))``."""
    up = weights.linear(f"{name}.up", x)
    with builder.inside(weights.around(f"{name}.up")):
        product = active(builder, activation, up)
    return weights.linear(f"{name}.down", product)


def _clamped(
    builder: GraphBuilder, floats: str, gate: ir.Value, up: ir.Value, slope: float, limit: float
) -> ir.Value:
    """``(up + 1) · gate · sigmoid(slope · gate)``, both within the limit."""
    one, low, high, steep = (
        builder.constant(f"clamped.{name}", np.array(value, DENSE_DTYPES[floats]))
        for name, value in {"one": 1, "low": -limit, "high": limit, "slope": slope}.items()
    )
    gate, up = builder.op("Min", gate, high), builder.op("Clip", up, low, high)
    share = builder.op("Sigmoid", builder.op("Mul", gate, steep))
    return builder.op("Mul", builder.op("Add", up, one), builder.op("Mul", gate, share))


def active(builder: GraphBuilder, activation: str, x: ir.Value) -> ir.Value:
    """What configs call an activation, of x. Raises Unsupported."""
    if activation in _TANH_GELU:
        return builder.op("Gelu", x, approximate="tanh")
    if activation == _SQUARED:
        positive = builder.op("Relu", x)
        return builder.op("Mul", positive, positive)
    if activation not in _SILU:
        raise Unsupported(f"graphs have no activation {activation!r:.60}")
    return builder.op("Mul", x, builder.op("Sigmoid", x))


def experts(
    builder: GraphBuilder,
    weights: Weights,
    hp: Hyperparameters,
    activation: str,
    layer: int,
    x: ir.Value,
    routed: ir.Value,
    *,
    over_all: bool,
    sigmoid: bool,
    clamped: Sequence[float],
) -> ir.Value:
    """The best ``hp.experts_used`` experts of every token, weighed by the router, which reads
    ``routed``, and by any factors of their own, and summed, and the expert of every token where
    there is one.

    ``over_all``: the softmax that weighs them is over all experts, and not over those chosen. One
    operator computes a layer whose weights are stacked. Else every expert computes the tokens that
    chose it and no others, and the sum is kept in f32.
    """
    name = f"layers.{layer}.moe"
    path = weights.around(f"{name}.router")
    with builder.inside(path):
        flat, read = (
            builder.shared("Reshape", value, builder.integers(-1, hp.hidden))
            for value in (x, routed)
        )
    logits = weights.linear(f"{name}.router", read, rank=2)
    if name in weights.stacks:
        with builder.inside(path):
            total = _fused(builder, weights, hp, weights.stacks[name], x, logits, over_all=over_all)
    else:
        with builder.inside(weights.path(f"{name}.router")):
            logits = _as(builder, logits, weights.floats, "f32")
            if f"{name}.choice.weight" in weights:
                shares, chosen = _apart(builder, weights, hp, name, logits, sigmoid=sigmoid)
            else:
                shares, chosen = _shares(builder, logits, hp.experts_used, over_all=over_all)
            if hp.routed_factor is not None:
                factor = builder.constant("routed.factor", np.array(hp.routed_factor, np.float32))
                shares = builder.op("Mul", shares, factor)
            if (factors := f"{name}.scales.weight") in weights:
                own = _as(builder, weights.plain(factors), weights.floats, "f32")
                shares = builder.op("Mul", shares, builder.op("Gather", own, chosen, axis=0))
        total = _one_by_one(
            builder, weights, hp, activation, name, x, flat, shares, chosen, clamped=clamped
        )
    if f"{name}.shared.up.weight" in weights:
        shared = gated(builder, weights, f"{name}.shared", activation, x)
        if f"{name}.shared_gate.weight" in weights:
            gate = weights.linear(f"{name}.shared_gate", x)
            with builder.inside(path):
                shared = builder.op("Mul", builder.op("Sigmoid", gate), shared)
        with builder.inside(path):
            total = builder.op("Add", total, shared)
    return total


def _shares(
    builder: GraphBuilder, logits: ir.Value, count: int, *, over_all: bool
) -> list[ir.Value]:
    """f32[tokens, count] that the experts chosen are multiplied by, and their numbers."""
    if over_all:
        logits = builder.op("Softmax", logits, axis=-1)
    best, chosen = builder.ops("TopK", [logits, builder.integers(count)], [True, True], axis=-1)
    # softmax over all experts, normalised over the chosen ones, is softmax over the chosen ones
    return [best if over_all else builder.op("Softmax", best, axis=-1), chosen]


def _apart(
    builder: GraphBuilder,
    weights: Weights,
    hp: Hyperparameters,
    name: str,
    logits: ir.Value,
    *,
    sigmoid: bool,
) -> list[ir.Value]:
    """What the experts chosen are multiplied by, and their numbers, where a number of every expert
    is added when they are chosen: sigmoids, or the softmax over all, in relation to those of the
    others that were chosen."""
    scores = builder.op("Sigmoid", logits) if sigmoid else builder.op("Softmax", logits, axis=-1)
    own = _as(builder, weights.plain(f"{name}.choice.weight"), weights.floats, "f32")
    ranked = _of_best_groups(builder, hp, builder.op("Add", scores, own))
    count = builder.integers(hp.experts_used)
    _, chosen = builder.ops("TopK", [ranked, count], [True, True], axis=-1)
    found = builder.op("GatherElements", scores, chosen, axis=-1)
    total = builder.op("ReduceSum", found, builder.integers(-1), keepdims=1)
    return [builder.op("Div", found, total), chosen]


def _of_best_groups(builder: GraphBuilder, hp: Hyperparameters, ranked: ir.Value) -> ir.Value:
    """f32[tokens, experts] with those of all but the best groups below any other; a group is as
    good as its two best experts together."""
    if hp.groups <= max(hp.groups_used, 1):
        return ranked
    shape = builder.integers(-1, hp.groups, hp.experts // hp.groups)
    groups = builder.op("Reshape", ranked, shape)
    two, _ = builder.ops("TopK", [groups, builder.integers(2)], [True, True], axis=-1)
    worth = builder.op("ReduceSum", two, builder.integers(-1), keepdims=0)
    count = builder.integers(hp.groups_used)
    _, best = builder.ops("TopK", [worth, count], [True, True], axis=-1)
    zeros = builder.op("Mul", worth, builder.constant("groups.none", np.array(0, np.float32)))
    one = builder.constant("groups.one", np.array(1, np.float32))
    ones = builder.op("Expand", one, builder.op("Shape", best))
    taken = builder.op("ScatterElements", zeros, best, ones, axis=-1)
    inside = builder.op("Unsqueeze", builder.op("Greater", taken, zeros), builder.integers(-1))
    least = builder.constant("groups.least", np.array(np.finfo(np.float32).min, np.float32))
    kept = builder.op("Where", inside, groups, least)
    return builder.op("Reshape", kept, builder.integers(-1, hp.experts))


def _one_by_one(
    builder: GraphBuilder,
    weights: Weights,
    hp: Hyperparameters,
    activation: str,
    name: str,
    x: ir.Value,
    flat: ir.Value,
    shares: ir.Value,
    chosen: ir.Value,
    *,
    clamped: Sequence[float],
) -> ir.Value:
    """Every expert by itself, for its own rows of ``flat``; the sum has the shape of x."""
    path = weights.around(f"{name}.router")
    with builder.inside(path):
        zero = ir.tensor(np.zeros(1, dtype=np.float32))
        total = builder.op("ConstantOfShape", builder.op("Shape", flat), value=zero)
    for expert in range(hp.experts):
        inner = weights.around(f"{name}.{expert}.gate")
        with builder.inside(inner):
            hits = builder.op("NonZero", builder.op("Equal", chosen, builder.integer(expert)))
            share = builder.op("GatherND", shares, builder.op("Transpose", hits, perm=[1, 0]))
            tokens = builder.op("Gather", hits, builder.integer(0), axis=0)
            rows = builder.op("Gather", flat, tokens, axis=0)
        result = gated(
            builder, weights, f"{name}.{expert}", activation, rows, rank=2, clamped=clamped
        )
        with builder.inside(inner):
            result = _as(builder, result, weights.floats, "f32")
            last = builder.integers(-1)
            weighed = builder.op("Mul", result, builder.op("Unsqueeze", share, last))
            places = builder.op("Unsqueeze", tokens, last)
            total = builder.op("ScatterND", total, places, weighed, reduction="add")
    with builder.inside(path):
        total = _as(builder, total, "f32", weights.floats)
        return builder.op("Reshape", total, builder.op("Shape", x))


def _fused(
    builder: GraphBuilder,
    weights: Weights,
    hp: Hyperparameters,
    stacks: tuple[Stack, Stack],
    x: ir.Value,
    logits: ir.Value,
    *,
    over_all: bool,
) -> ir.Value:
    """All experts of a layer in one operator."""
    (codes, scales, zeros), (codes2, scales2, zeros2) = map(weights.stacked, stacks)
    grid = stacks[0].members[0].encoding.grouped
    assert grid is not None  # as all stacks are
    arrays = [x, logits, codes, scales, None, codes2, scales2, *[None] * 4, zeros, zeros2, None]
    arrays.append(builder.op("Softmax", logits, axis=-1) if over_all else None)
    while arrays[-1] is None:
        arrays.pop()
    return builder.op(
        "QMoE",
        *arrays,
        domain=CONTRIB,
        **attributes_of(
            chosen=hp.experts_used,
            bits=grid.bits,
            block=grid.group or hp.hidden,
            level=weights.level,
            normalised=not over_all,
        ),
    )


def _as(builder: GraphBuilder, value: ir.Value, old: str, new: str) -> ir.Value:
    return value if old == new else builder.cast(value, new)
