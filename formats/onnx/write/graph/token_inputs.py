"""What some models give every layer of every token beside the stream: rows of a table, joined with
what a projection makes of the token's embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.feed_forward import active
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.model.hyperparameters import Hyperparameters

Norm = Callable[[ir.Value, ir.Value], ir.Value]


def token_inputs(
    builder: GraphBuilder,
    weights: Weights,
    norm: Norm,
    hp: Hyperparameters,
    ids: ir.Value,
    embedded: ir.Value,
) -> ir.Value | None:
    """``[batch, sequence, layers, width]``; None for models without."""
    if not hp.input_width:
        return None

    def times(x: ir.Value, name: str, factor: float) -> ir.Value:
        number = np.array(factor, DENSE_DTYPES[weights.floats])
        return builder.op("Mul", x, builder.constant(f"inputs.{name}", number))

    shape = builder.integers(0, 0, hp.layers, hp.input_width)
    rows = weights.lookup("inputs.embed.weight", ids)
    made = weights.linear("inputs.proj", embedded)
    with builder.inside(weights.path("inputs.norm")):
        rows = builder.op("Reshape", times(rows, "scale", hp.input_width**0.5), shape)
        made = builder.op("Reshape", times(made, "factor", hp.hidden**-0.5), shape)
        made = norm(made, weights.plain("inputs.norm.weight"))
        return times(builder.op("Add", made, rows), "both", 0.5**0.5)


def mixed_in(
    builder: GraphBuilder,
    weights: Weights,
    activation: str,
    layer: int,
    x: ir.Value,
    inputs: ir.Value,
) -> ir.Value:
    """``out(activation(gate(x)) · inputs)`` of one layer, before its norm."""
    name = f"layers.{layer}.input"
    gate = weights.linear(f"{name}.gate", x)
    with builder.inside(weights.path(f"{name}.gate")):
        own = builder.op("Gather", inputs, builder.integer(layer), axis=2)
        product = builder.op("Mul", active(builder, activation, gate), own)
    return weights.linear(f"{name}.out", product)
