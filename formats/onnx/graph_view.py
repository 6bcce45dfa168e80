"""A graph that was read: who makes a value, who takes it, what is constant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import CorruptFile, Unsupported
from zenconvert.formats.onnx.container import Initializer, ModelFile

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
            for output in node.output:
                if output:
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
