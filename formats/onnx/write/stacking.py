"""Experts that one QMoE node per layer computes, and the arrays that they lie in.

::

    QMoE             fc1 codes        uint8[E, 2·ffn, hidden/2]     rows of gate and up in turn:
    (com.microsoft)  fc1 scales       float[E, 2·ffn, hidden/B]     g0, u0, g1, u1 …
                     fc1 zero_points  uint8[E, 2·ffn, ⌈hidden/2B⌉]
                     fc2 …            [E, hidden, …]                of down, along ffn
    y = Σ of the k experts with the largest logits: softmax(these logits) · down(silu(gate) · up)

or, with a 15th input router_weights [tokens, E], its entries of these experts in the place of the
softmax.

Every row is packed as MatMulNBits packs it. The operator is used where it is right: for 4 bits in
blocks of one size for the whole layer that divides hidden and ffn; either all weights of a product
have zero points, or none. Measured on onnxruntime 1.32 (CPU) against the definition, for prefills
and single tokens, blocks of 16 to 1024, with zero points and without: off by 1e-7 to 7e-7 of the
norm at accuracy levels 0 and 1, by 1e-2 at level 4 (integer activations), by 2e-4 with f16
activations.

8 and 2 bits are off by 1e-2 at every level: they have no kernels for float activations. These,
float experts, act-order (the operator has one order of columns), minimums, layers of several
grids, experts with factors of their own and weights of experts that are multiplied by one for all
keep a graph of single experts, as does everything in
operators of the standard.

Runtimes before mid-2026 do not know ``weights_prepacked``, and refuse a graph with it.

Source: onnxruntime ``contrib_defs.cc`` (QMoE).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from zenconvert.formats.onnx.codecs import NBitsCodec
from zenconvert.formats.onnx.write.placing import Stack
from zenconvert.formats.onnx.write.target_type import TargetType
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.layout import Choice

BITS: Final = 4
GATE_UP, DOWN = "gate_up_proj", "down_proj"


def attributes_of(
    *, chosen: int, bits: int, block: int, level: int, normalised: bool
) -> dict[str, Any]:
    """Attributes of a QMoE node: experts of a token, bits, columns of a block, accuracy level, and
    whether what a token's experts are weighed by sums up to 1."""
    return {
        "k": chosen,
        "expert_weight_bits": bits,
        "block_size": block,
        "weights_prepacked": 0,
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "swiglu_fusion": 1,
        "normalize_routing_weights": int(normalised),
        "accuracy_level": level,
    }


def stacks_of(
    hp: Hyperparameters, kind: TargetType, tensors: Mapping[str, Choice]
) -> dict[str, tuple[Stack, Stack]]:
    """``layers.0.moe`` → the stacks of gate and up, and of down, where QMoE computes the layer.

    ``tensors`` are by neutral name.
    """
    if kind.standard or not hp.experts or hp.routed_factor not in (None, 1):
        return {}
    sparse = (layer for layer in range(hp.layers) if layer not in hp.dense_layers)
    moe = (f"layers.{layer}.moe" for layer in sparse)
    odd = (
        "scales.weight",
        "0.gate.bias",
        "choice.weight",
    )  # what its graphs here have no inputs for
    names = (name for name in moe if not any(f"{name}.{one}" in tensors for one in odd))
    return {name: found for name in names if (found := _stacks(name, hp.experts, tensors))}


def _stacks(name: str, count: int, tensors: Mapping[str, Choice]) -> tuple[Stack, Stack] | None:
    first, second = (
        tuple(
            tensors[f"{name}.{expert}.{part}.weight"] for expert in range(count) for part in parts
        )
        for parts in (("gate", "up"), ("down",))
    )
    blocks = {block for members in (first, second) for block in _blocks(members)}
    if len(blocks) != 1 or None in blocks:
        return None
    path = first[0].name.partition(".experts.")[0]
    return (
        Stack(f"{path}.experts.{GATE_UP}", first, abreast=2),
        Stack(f"{path}.experts.{DOWN}", second),
    )


def _blocks(members: Sequence[Choice]) -> Iterator[int | None]:
    """The columns of a block of every member; None for what cannot be part of a stack."""
    for choice in members:
        grid, columns = choice.encoding.grouped, choice.shape[-1]
        if (
            grid is None
            or not isinstance(choice.codec, NBitsCodec)
            or grid != members[0].encoding
            or grid.bits != BITS
            or grid.offset is not None
            or choice.columns is not None
            or columns % (grid.group or columns)
        ):
            yield None
        else:
            yield grid.group or columns
