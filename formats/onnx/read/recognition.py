"""What the nodes of a graph use: matrices, embeddings, norms and biases, with all their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zenconvert.formats.onnx.read.container import Initializer
from zenconvert.formats.onnx.read.graph_view import GraphView, inputs, scopes
from zenconvert.formats.onnx.read.matrices import FLOATS, Matrix, linear
from zenconvert.formats.onnx.read.qmoe import OPERATOR, biases, experts
from zenconvert.formats.onnx.read.tables import embedding

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Found:
    """A matrix or vector and every name that may tell what it is."""

    texts: tuple[str, ...]
    matrix: Matrix | None = None
    vector: Initializer | None = None
    role: str = "linear"
    """``linear``, ``embed``, ``norm`` or ``bias``."""


def recognise(view: GraphView) -> Iterator[Found]:
    """Every matrix, embedding, norm and bias that the nodes of a graph use."""
    for node in view.nodes:
        if (matrix := linear(view, node)) is not None:
            texts = _texts(node, matrix)
            yield Found(texts, matrix)
            if (bias := _bias(view, node, matrix)) is not None:
                yield Found((*texts, bias.name), vector=bias, role="bias")
        elif node.op_type == OPERATOR:
            yield from _experts(view, node)
        elif (table := embedding(view, node)) is not None:
            yield Found(_texts(node, table), table, role="embed")
        elif (gamma := _gamma(view, node)) is not None:
            texts = (gamma.name, node.name, *scopes(node))
            yield Found(texts, vector=gamma, role="norm")
            if (beta := _beta(view, node)) is not None:
                yield Found((beta.name, *texts), vector=beta, role="bias")


def _experts(view: GraphView, node: onnx.NodeProto) -> Iterator[Found]:
    """The matrices of a QMoE node, and biases, which no model of ours has there."""
    name = ""
    for name, matrix in experts(view, node):
        yield Found((name,), matrix)
    for bias in biases(view, node):
        yield Found((name,), vector=bias, role="bias")


def _texts(node: onnx.NodeProto, matrix: Matrix) -> tuple[str, ...]:
    first = next(iter(matrix.arrays.values()))
    return (first.name, node.name, *scopes(node))


def _bias(view: GraphView, node: onnx.NodeProto, matrix: Matrix) -> Initializer | None:
    """What is added to a product."""
    own = {"MatMulNBits": 5, "Gemm": 2}.get(node.op_type)
    values = [inputs(node, own + 1)[own]] if own is not None else []
    output = matrix.output or node.output[0]
    for add in view.takers(output, "Add"):
        values += [value for value in add.input if value != output]
    for value in values:
        array = view.initializer(value) if value else None
        if array is not None and array.shape == matrix.shape[:1]:
            return array
    return None


def _beta(view: GraphView, node: onnx.NodeProto) -> Initializer | None:
    """The bias of a norm that has one."""
    if node.op_type != "LayerNormalization":
        return None
    value = inputs(node, 3)[2]
    return view.initializer(value) if value else None


def _gamma(view: GraphView, node: onnx.NodeProto) -> Initializer | None:
    """The weight of a norm, or other factors; None for any other node."""
    fused = {
        "SimplifiedLayerNormalization": 1,
        "RMSNormalization": 1,
        "LayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 2,
        "GroupQueryAttention": 11,  # what stands beside its scores
    }
    if (place := fused.get(node.op_type)) is not None:
        return view.initializer(inputs(node, place + 1)[place])
    chooses = node.op_type == "Add" and any(
        any(view.takers(node.output[0], taker)) for taker in ("TopK", "Reshape")
    )
    chooses = chooses and any(view.producer(v, "Sigmoid", "Softmax") for v in node.input)
    if node.op_type not in ("Mul", "Gather") and not chooses:  # of experts, one of each
        return None
    found = [a for value in node.input if (a := view.initializer(value)) is not None]
    plain = found and (len(found[0].shape) == 1 or (chooses and found[0].shape[0] == 1))
    return found[0] if plain and found[0].dtype in FLOATS else None
