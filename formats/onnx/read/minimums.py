"""Float minimums of a grid, which graphs of ours add beside a product or a lookup.

::

    MatMulNBits(x, …) + ReduceSum(Reshape(x)) · Transpose(offsets + middle · scales)
    Reshape(GatherBlockQuantized(…)) + Unsqueeze(Gather(offsets + middle · scales))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zenconvert.formats.onnx.read.container import Initializer
from zenconvert.formats.onnx.read.graph_view import GraphView

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Minimums:
    """The offsets of a grid, and what its codes are stored around."""

    offsets: Initializer
    middle: int
    output: str = ""
    """The product in the graph after they were added."""


def of_product(view: GraphView, value: str) -> Minimums | None:
    """The minimums that belong to a product."""
    for add in view.takers(value, "Add"):
        for other in add.input:
            node = view.producer(_before(view, other, "Cast"), "MatMul")
            if node is None or view.producer(node.input[0], "ReduceSum") is None:
                continue
            factors = _before(view, node.input[1], "Transpose")
            if (found := _middles(view, factors, add.output[0])) is not None:
                return found
    return None


def of_lookup(view: GraphView, node: onnx.NodeProto) -> Minimums | None:
    """The minimums that belong to a lookup."""
    for reshape in view.takers(node.output[0], "Reshape"):
        for add in view.takers(reshape.output[0], "Add"):
            for other in add.input:
                gathered = _before(view, _before(view, other, "Cast"), "Unsqueeze")
                if (gather := view.producer(gathered, "Gather")) is not None:
                    return _middles(view, gather.input[0], add.output[0])
    return None


def _middles(view: GraphView, value: str, output: str) -> Minimums | None:
    """``offsets + middle · scales``."""
    node = view.producer(value, "Add")
    shift = view.producer(node.input[1], "Mul") if node is not None else None
    if node is None or shift is None:
        return None
    offsets = view.file.initializers.get(node.input[0])
    middle = view.file.initializers.get(shift.input[1])
    if offsets is None or middle is None or (middle.dtype, middle.shape) != ("f32", ()):
        return None
    number = float(np.frombuffer(middle.read(), dtype=np.float32)[0])
    return Minimums(offsets, int(number), output) if 0 <= number < 256 else None


def _before(view: GraphView, value: str, op_type: str) -> str:
    """The value before a node of one operator, where there is one."""
    node = view.producer(value, op_type)
    return node.input[0] if node is not None else value
