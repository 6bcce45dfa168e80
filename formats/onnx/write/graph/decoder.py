"""The graph of a decoder: one builder for every family that the architecture rows describe.

::

    input_ids i64[batch, sequence], attention_mask i64[batch, total],
    past_key_values.N.key / .value [batch, kv_heads, past, head]
    → logits [batch, sequence, vocab], present.N.key / .value [batch, kv_heads, total, head]

What a layer is follows from its modules: attention with or without biases and norms of heads, a
gated feed-forward network or experts. How norms and attention are written is the affair of a
profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.feed_forward import experts, gated
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.model.hyperparameters import Hyperparameters

PRODUCER: Final = "zenconvert"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a graph depends on beside its weights."""

    hp: Hyperparameters
    windows: Sequence[int | None]
    """Tokens that every layer sees; None for all."""
    rotating: Sequence[bool]
    """Whether every layer rotates positions."""
    norms_heads_whole: bool
    """Norms of q and k take all heads as one."""
    rotary_pairs: bool
    """Neighbouring channels of a head are rotated together, and not those of two halves."""
    activation: str
    """Of the feed-forward network, as configs call it."""
    scales_embedding: bool
    """Embeddings are multiplied by the root of the hidden size."""
    floats: str
    """Type of the activations."""


class Profile(Protocol):
    """How the parts that every decoder has are written in operators."""

    opsets: dict[str, int]
    ir_version: int

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Compute what all layers share."""

    def norm(self, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """The root mean square norm over the last dimension."""

    def add_and_norm(
        self, x: ir.Value, update: ir.Value, gamma: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """``x + update``, and its norm first."""

    def attention(
        self, layer: int, qkv: Sequence[ir.Value], past: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Attention of one layer, with its rotation if there is one: its output
        ``[batch, sequence, q_width]``, keys and values."""


def build(facts: Facts, builder: GraphBuilder, weights: Weights, profile: Profile) -> ir.Model:
    """The whole model."""
    hp = facts.hp
    ids = builder.input("input_ids", "i64", ("batch_size", "sequence_length"))
    mask = builder.input("attention_mask", "i64", ("batch_size", "total_sequence_length"))
    profile.begin(ids, mask)
    growth = None if hp.score_growth is None else _growth(ids, mask, facts, builder)
    x, update = weights.lookup("embed.weight", ids), None
    if facts.scales_embedding:
        x = builder.op("Mul", x, _number("embedding.scale", hp.hidden**0.5, facts, builder))
    for layer in range(hp.layers):
        x, update = _layer(layer, facts, builder, weights, profile, x, update, growth)
    with builder.inside(weights.path("norm")):
        assert update is not None  # there is at least one layer
        hidden, _ = profile.add_and_norm(x, update, weights.plain("norm.weight"))
    logits = weights.linear("head" if "head.weight" in weights else "embed", hidden)
    if hp.logit_softcap is not None:
        cap = _number("logits.softcap", hp.logit_softcap, facts, builder)
        logits = builder.op("Mul", builder.op("Tanh", builder.op("Div", logits, cap)), cap)
    builder.output(logits, "logits", facts.floats, ("batch_size", "sequence_length", hp.vocab))
    # logits come first, the caches after them in the order of the layers
    builder.outputs.insert(0, builder.outputs.pop())
    return ir.Model(
        builder.graph("main", profile.opsets),
        ir_version=profile.ir_version,
        producer_name=PRODUCER,
    )


def _layer(
    layer: int,
    facts: Facts,
    builder: GraphBuilder,
    weights: Weights,
    profile: Profile,
    x: ir.Value,
    update: ir.Value | None,
    growth: ir.Value | None,
) -> tuple[ir.Value, ir.Value]:
    """One block: the stream before its second half, and what that half adds to it."""
    name = f"layers.{layer}"
    normed, x = _entered(f"{name}.attn_norm", x, update, builder, weights, profile)
    qkv = [weights.linear(f"{name}.attn.{part}", normed) for part in "qkv"]
    for at, heads in enumerate((facts.hp.heads, facts.hp.kv_heads)):
        module = f"{name}.attn.{'qk'[at]}_norm"
        if f"{module}.weight" in weights:
            if facts.norms_heads_whole:
                qkv[at] = _normed_after(module, qkv[at], builder, weights, profile)
            else:
                qkv[at] = _normed_heads(module, heads, facts, builder, weights, profile, qkv[at])
    with builder.inside(weights.around(f"{name}.attn.q")):
        if growth is not None:
            qkv[0] = builder.op("Mul", qkv[0], growth)
        past = _past(layer, facts, builder)
        mixed, *present = profile.attention(layer, qkv, past)
        _present(layer, facts, builder, present)
    update = weights.linear(f"{name}.attn.o", mixed)
    update = _normed_after(f"{name}.attn_post_norm", update, builder, weights, profile)
    normed, x = _entered(f"{name}.ffn_norm", x, update, builder, weights, profile)
    if facts.hp.experts and layer not in facts.hp.dense_layers:
        update = experts(builder, weights, facts.hp, facts.activation, layer, normed)
    else:
        update = gated(builder, weights, f"{name}.ffn", facts.activation, normed)
    return x, _normed_after(f"{name}.ffn_post_norm", update, builder, weights, profile)


def _entered(
    module: str,
    x: ir.Value,
    update: ir.Value | None,
    builder: GraphBuilder,
    weights: Weights,
    profile: Profile,
) -> tuple[ir.Value, ir.Value]:
    """What a half of a layer reads, normed where the family norms it there, and the stream that
    its result is added to."""
    if f"{module}.weight" not in weights:
        total = x if update is None else builder.op("Add", x, update)
        return total, total
    with builder.inside(weights.path(module)):
        gamma = weights.plain(f"{module}.weight")
        if update is None:
            return profile.norm(x, gamma), x
        return profile.add_and_norm(x, update, gamma)


def _growth(ids: ir.Value, mask: ir.Value, facts: Facts, builder: GraphBuilder) -> ir.Value:
    """By what queries of the new tokens are multiplied, [batch, sequence, 1]: 1 + b · ln(1 + ⌊p⌋),
    p being the position in original contexts. Rotations leave factors as they are."""
    with builder.inside("model.score_growth"):
        new = builder.op("Shape", ids, start=1, end=2)
        length = builder.op("Shape", mask, start=1, end=2)
        counted = builder.op("CumSum", mask, builder.integer(1))
        first = builder.op("Sub", length, new)
        places = builder.op("Slice", counted, first, length, builder.integers(1))
        places = builder.op("Max", builder.op("Sub", places, builder.integer(1)),
                            builder.integer(0))  # fmt: skip
        contexts = builder.op("Div", places, builder.integer(facts.hp.original_context))
        one = builder.constant("growth.one", np.array(1, np.float32))
        logs = builder.op("Log", builder.op("Add", builder.cast(contexts, "f32"), one))
        beta = builder.constant("growth.beta", np.array(facts.hp.score_growth, np.float32))
        factors = builder.op("Add", builder.op("Mul", logs, beta), one)
        wide = builder.op("Unsqueeze", factors, builder.integers(2))
        return wide if facts.floats == "f32" else builder.cast(wide, facts.floats)


def _number(name: str, value: float, facts: Facts, builder: GraphBuilder) -> ir.Value:
    """A constant in the type of the activations."""
    return builder.constant(name, np.array(value, DENSE_DTYPES[facts.floats]))


def _normed_after(
    module: str, x: ir.Value, builder: GraphBuilder, weights: Weights, profile: Profile
) -> ir.Value:
    """What a module gives, normed by another one where the family has that."""
    if f"{module}.weight" not in weights:
        return x
    with builder.inside(weights.path(module)):
        return profile.norm(x, weights.plain(f"{module}.weight"))


def _normed_heads(
    module: str,
    heads: int,
    facts: Facts,
    builder: GraphBuilder,
    weights: Weights,
    profile: Profile,
    x: ir.Value,
) -> ir.Value:
    """``[batch, sequence, heads · head_dim]`` with every head normed by itself."""
    size = facts.hp.head_dim
    with builder.inside(weights.path(module)):
        parts = builder.op("Reshape", x, builder.integers(0, 0, heads, size))
        normed = profile.norm(parts, weights.plain(f"{module}.weight"))
        return builder.op("Reshape", normed, builder.integers(0, 0, heads * size))


def _cache_shape(hp: Hyperparameters, length: str) -> tuple[str | int, ...]:
    return ("batch_size", hp.kv_heads, length, hp.head_dim)


def _past(layer: int, facts: Facts, builder: GraphBuilder) -> list[ir.Value]:
    shape = _cache_shape(facts.hp, "past_sequence_length")
    names = (f"past_key_values.{layer}.{part}" for part in ("key", "value"))
    return [builder.input(name, facts.floats, shape) for name in names]


def _present(layer: int, facts: Facts, builder: GraphBuilder, values: Sequence[ir.Value]) -> None:
    shape = _cache_shape(facts.hp, "total_sequence_length")
    for value, part in zip(values, ("key", "value"), strict=True):
        builder.output(value, f"present.{layer}.{part}", facts.floats, shape)
