"""A graph that was read: who makes a value, who takes it, what is constant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import CorruptFile, Unsupported
from zenconvert.formats.onnx.read.container import Initializer, ModelFile

if TYPE_CHECKING:
    import onnx

SCOPES: Final = "pkg.torch.onnx.name_scopes"
"""Node metadata of torch.onnx: the modules around a node, outermost first."""

# operators whose weights are merged, reordered or prepacked for one kernel
FUSED: Final = frozenset(
    {
        "DynamicQuantizeMatMul",
        "FusedGemm",
        "MatMulBlockQuantizedFp4Weight",
        "MatMulBlockQuantizedFp8Weight",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBitsMlp",
        "MatMulNBitsQLoRA",
        "MatMulNBitsQkv",
        "MoE",
        "QAttention",
        "QGemm",
        "QLinearMatMul",
    }
)
# attributes with which sizes are computed, of the operators whose weights are read
_SIZES: Final = frozenset(
    {
        "K",
        "N",
        "axis",
        "bits",
        "block_size",
        "expert_weight_bits",
        "fc1_expert_weight_bits",
        "fc2_expert_weight_bits",
        "gather_axis",
        "quantize_axis",
    }
)
_SIZED: Final = frozenset(
    {"DequantizeLinear", "Gather", "GatherBlockQuantized", "MatMulNBits", "QMoE"}
)

_INPUTS: Final = {
    "Add": 2,
    "Cast": 1,
    "DequantizeLinear": 2,
    "Gather": 2,
    "GatherBlockQuantized": 3,
    "Gemm": 2,
    "Identity": 1,
    "MatMul": 2,
    "MatMulNBits": 3,
    "Mul": 2,
    "QMoE": 3,
    "ReduceSum": 1,
    "Reshape": 1,
    "Softmax": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
"""Operators that are looked through → the inputs that each has to have."""


class GraphView:
    """The main graph of a model file, indexed by value."""

    def __init__(self, file: ModelFile) -> None:
        self.file, self.nodes = file, list(file.model.graph.node)
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type in FUSED:
                raise Unsupported(
                    f"{file.path}: node {node.name!r} is a {node.op_type}, whose weights cannot be "
                    "taken apart again; export the model without that fusion"
                )
            _check_sizes(file, node)
            _check_values(file, node)
            for output in filter(None, node.output):
                if output in self.producers:
                    raise CorruptFile(f"{file.path}: two nodes make the value {output!r:.100}")
                self.producers[output] = node
            for value in node.input:
                self.consumers.setdefault(value, []).append(node)

    def initializer(self, value: str) -> Initializer | None:
        """The initializer that a value is, directly or by way of an Identity or a Cast."""
        for _ in range(4):
            if (found := self.file.initializers.get(value)) is not None:
                return found
            node = self.producers.get(value)
            if node is None or node.op_type not in {"Identity", "Cast"}:
                return None
            value = node.input[0]
        return None

    def producer(self, value: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes a value, where it is one of these operators."""
        node = self.producers.get(value)
        return node if node is not None and node.op_type in op_types else None

    def takers(self, value: str, op_type: str) -> Iterator[onnx.NodeProto]:
        """The nodes of one operator that take a value."""
        return (n for n in self.consumers.get(value, ()) if n.op_type == op_type)


def _check_sizes(file: ModelFile, node: onnx.NodeProto) -> None:
    """Raise CorruptFile for a size that is no integer."""
    for attribute in node.attribute if node.op_type in _SIZED else ():
        if attribute.name in _SIZES and attribute.type != attribute.INT:
            raise CorruptFile(
                f"{file.path}: node {node.name!r} ({node.op_type}): {attribute.name} should be an "
                "integer"
            )


def _check_values(file: ModelFile, node: onnx.NodeProto) -> None:
    """Raise CorruptFile for a node without the inputs and the output that its operator has."""
    least = _INPUTS.get(node.op_type)
    if least is None:
        return
    if not (len(node.input) >= least and all(node.input[:least]) and any(node.output[:1])):
        raise CorruptFile(
            f"{file.path}: node {node.name!r:.100} ({node.op_type}) has {len(node.input)} inputs "
            f"and {len(node.output)} outputs; {least} inputs or more and one output are expected"
        )
    if node.op_type == "Add" and len(node.input) > least:
        raise CorruptFile(f"{file.path}: node {node.name!r:.100} adds {len(node.input)} values")


def attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    """Integers, floats and texts among the attributes of a node."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == attribute.INT:
            found[attribute.name] = attribute.i
        elif attribute.type == attribute.FLOAT:
            found[attribute.name] = attribute.f
        elif attribute.type == attribute.INTS:
            found[attribute.name] = tuple(attribute.ints)
        elif attribute.type == attribute.STRING:
            found[attribute.name] = attribute.s.decode("utf-8", "replace")
    return found


def inputs(node: onnx.NodeProto, count: int) -> list[str]:
    """The first inputs of a node, "" for those that are left out."""
    return [*node.input, *[""] * count][:count]


def scopes(node: onnx.NodeProto) -> list[str]:
    """Modules around a node, innermost first."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return re.findall(r"'([^']*)'", entry.value)[::-1]
    return []
