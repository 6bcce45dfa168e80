"""From a target type to a finished model: the profile, the weights, the graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.decoder import Facts, Profile, build
from zenconvert.formats.onnx.write.graph.onnxruntime_profile import OnnxruntimeProfile
from zenconvert.formats.onnx.write.graph.standard_profile import StandardProfile
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.formats.onnx.write.placing import Place, Stack
from zenconvert.formats.onnx.write.target_type import TargetType
from zenconvert.model.layout import Choice


def serialized(model: ir.Model) -> bytes:
    """The protobuf of a model."""
    message: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return message


def build_model(
    facts: Facts,
    kind: TargetType,
    tensors: Mapping[str, Choice],
    stacks: Mapping[str, tuple[Stack, Stack]],
    places: Mapping[str, Place],
    orders: Mapping[tuple[int, ...], str],
) -> ir.Model:
    """The model of a checkpoint.

    ``tensors`` are by neutral name, ``stacks`` by that of a layer's experts, ``places`` by array
    name; ``orders`` names the arrays that hold orders of columns.
    """
    builder = GraphBuilder()
    weights = Weights(
        builder,
        tensors,
        stacks,
        places,
        orders,
        facts.floats,
        kind.standard,
        kind.level,
        rounds=kind.rounds_to is not None,
    )
    profile: Profile
    if kind.standard:
        two_bits = any(
            (grid := c.encoding.grouped) is not None and grid.bits == 2 for c in tensors.values()
        )
        profile = StandardProfile(facts, builder, two_bits=two_bits)
    else:
        profile = OnnxruntimeProfile(facts, builder, weights)
    return build(facts, builder, weights, profile)
