"""The graph of a decoder: one builder for every family that the architecture rows describe.

::

    input_ids i64[batch, sequence], attention_mask i64[batch, total],
    past_key_values.N.key / .value [batch, kv_heads, past, head], of layers that have keys
    → logits [batch, sequence, vocab], present.N.key / .value [batch, kv_heads, total, head]

What a layer is follows from its modules: attention with or without biases and norms of heads, a
gated feed-forward network or experts. How norms and attention are written is the affair of a
profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.write.graph import latents
from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.feed_forward import experts, gated, plain
from zenconvert.formats.onnx.write.graph.token_inputs import mixed_in, token_inputs
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.layer_heads import LayerHeads

PRODUCER: Final = "zenconvert"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a graph depends on beside its weights."""

    hp: Hyperparameters
    windows: Sequence[int | None]
    """Tokens that every layer sees; None for all."""
    rotating: Sequence[bool]
    """Whether every layer rotates positions."""
    heads: Sequence[LayerHeads]
    """Of every layer."""
    norms_heads_whole: bool
    """Norms of q and k take all heads as one."""
    norms_values: bool
    """Values are normed head by head, without a weight."""
    score_scale: float
    """What scores are multiplied by."""
    norms_turned: bool
    """Norms of heads take them as they are rotated."""
    rotary_pairs: bool
    """Neighbouring channels of a head are rotated together, and not those of two halves."""
    activation: str
    """Of the feed-forward network, as configs call it."""
    clamped: Sequence[float]
    """Slope and limit of gated networks that are clamped; none of others."""
    layer_norms: bool
    """Norms take the mean away, and are not root mean square norms."""
    parallel: bool
    """Attention and the feed-forward network read the same, and both are added to the stream."""
    routes_over_all: bool
    """Experts are weighed by the softmax over all of them, and not over those that were chosen."""
    routes_by_sigmoid: bool
    """They are weighed by the sigmoids of their logits, in relation to those of the others."""
    scales_embedding: bool
    """Embeddings are multiplied by the root of the hidden size."""
    floats: str
    """Type of the activations."""
    latent_eps: float
    """Of norms of what queries, keys and values are made of."""

    @property
    def turns_apart(self) -> bool:
        """Queries and keys are rotated before attention takes them, and not by its operator."""
        return self.norms_turned or bool(self.hp.kv_rank)


class Profile(Protocol):
    """How the parts that every decoder has are written in operators."""

    opsets: dict[str, int]
    ir_version: int

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Compute what all layers share."""

    def norm(self, x: ir.Value, gamma: ir.Value | None, epsilon: float | None = None) -> ir.Value:
        """The root mean square norm over the last dimension, which may have no weight; ``epsilon``
        where it is not the model's."""

    def turned(self, x: ir.Value, heads: int) -> ir.Value:
        """``[batch, sequence, heads · size]`` of the new tokens, rotated by their positions."""

    def add_and_norm(
        self, x: ir.Value, update: ir.Value, gamma: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """``x + update``, and its norm first."""

    def attention(
        self,
        layer: int,
        qkv: Sequence[ir.Value],
        past: Sequence[ir.Value],
        sinks: ir.Value | None,
    ) -> list[ir.Value]:
        """Attention of one layer, with its rotation if nobody rotated before: its output
        ``[batch, sequence, q_width]``, keys and values. ``sinks`` [heads] stand beside the scores
        that softmax takes."""


def build(facts: Facts, builder: GraphBuilder, weights: Weights, profile: Profile) -> ir.Model:
    """The whole model."""
    return _Decoder(facts, builder, weights, profile).model()


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A graph while it is built."""

    facts: Facts
    builder: GraphBuilder
    weights: Weights
    profile: Profile
    kept: dict[int, list[ir.Value]] = field(default_factory=dict)
    """Layer → its new keys and values, and those of the past: later layers may read them."""

    def model(self) -> ir.Model:
        """All of it."""
        builder, hp = self.builder, self.facts.hp
        ids = builder.input("input_ids", "i64", ("batch_size", "sequence_length"))
        mask = builder.input("attention_mask", "i64", ("batch_size", "total_sequence_length"))
        self.profile.begin(ids, mask)
        growth = None if hp.score_growth is None else _growth(ids, mask, self.facts, builder)
        x, update = self._embedding(ids), None
        inputs = token_inputs(builder, self.weights, self.profile.norm, hp, ids, x)
        for layer in range(hp.layers):
            x, update = self._layer(layer, x, update, growth)
            x, update = self._ended(layer, x, update, inputs)
        hidden, _ = self._entered("norm", x, update)
        logits = self._logits(hidden)
        shape = ("batch_size", "sequence_length", hp.vocab)
        builder.output(logits, "logits", self.facts.floats, shape)
        # logits come first, the caches after them in the order of the layers
        builder.outputs.insert(0, builder.outputs.pop())
        return ir.Model(
            builder.graph("main", self.profile.opsets),
            ir_version=self.profile.ir_version,
            producer_name=PRODUCER,
        )

    def _embedding(self, ids: ir.Value) -> ir.Value:
        hp, x = self.facts.hp, self.weights.lookup("embed.weight", ids)
        if self.facts.scales_embedding:
            x = self._times(x, "embedding.scale", hp.hidden**0.5)
        return self._times(x, "embedding.factor", hp.embedding_factor)

    def _logits(self, hidden: ir.Value) -> ir.Value:
        hp, builder = self.facts.hp, self.builder
        logits = self.weights.linear("head" if "head.weight" in self.weights else "embed", hidden)
        logits = self._times(logits, "logits.factor", hp.logit_factor)
        if hp.logit_divisor is not None:
            divisor = self._number("logits.divisor", hp.logit_divisor)
            logits = builder.op("Div", logits, divisor)
        if hp.logit_softcap is not None:
            cap = self._number("logits.softcap", hp.logit_softcap)
            logits = builder.op("Mul", builder.op("Tanh", builder.op("Div", logits, cap)), cap)
        return logits

    def _layer(
        self, layer: int, x: ir.Value, update: ir.Value | None, growth: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """One block: the stream before its second half, and what that half adds to it."""
        name = f"layers.{layer}"
        normed, x = self._entered(f"{name}.attn_norm", x, update)
        mixed = self._attention(layer, normed, growth)
        mixed = self._normed(f"{name}.attn_post_norm", mixed)
        mixed = self._times(mixed, "residual.factor", self.facts.hp.residual_factor)
        if not self.facts.parallel:
            normed, x = self._entered(f"{name}.ffn_norm", x, mixed)
        update = self._feed_forward(layer, normed, x)
        update = self._normed(f"{name}.ffn_post_norm", update)
        update = self._times(update, "residual.factor", self.facts.hp.residual_factor)
        if self.facts.parallel:
            x = self.builder.op("Add", x, mixed)
        return x, update

    def _ended(
        self, layer: int, x: ir.Value, update: ir.Value, inputs: ir.Value | None
    ) -> tuple[ir.Value, ir.Value | None]:
        """What a layer makes of its own input of every token, and its factor."""
        name, builder = f"layers.{layer}", self.builder
        if inputs is not None:
            x = builder.op("Add", x, update)
            update = mixed_in(builder, self.weights, self.facts.activation, layer, x, inputs)
            update = self._normed(f"{name}.input.norm", update)
        if f"{name}.factor.weight" not in self.weights:
            return x, update
        factor = self.weights.plain(f"{name}.factor.weight")
        return builder.op("Mul", builder.op("Add", x, update), factor), None

    def _attention(self, layer: int, normed: ir.Value, growth: ir.Value | None) -> ir.Value:
        name, builder, weights = f"layers.{layer}", self.builder, self.weights
        source = self.facts.heads[layer].source
        query, *fresh = self._fresh(layer, normed, "qkv" if source == layer else "q")
        with builder.inside(weights.around(f"{name}.attn.o")):
            if growth is not None:
                query = builder.op("Mul", query, growth)
            if source == layer:
                self.kept[layer] = [*fresh, *_past(layer, self.facts, builder)]
            key, value, *past = self.kept[source]
            sinks = f"{name}.attn.sinks.weight"
            beside = weights.plain(sinks) if sinks in weights else None
            mixed, *present = self.profile.attention(layer, [query, key, value], past, beside)
            if source == layer:
                _present(layer, self.facts, builder, present)
            if self.facts.hp.kv_rank:
                size = self.facts.heads[layer].size
                mixed = latents.values_of(builder, self.facts.hp, size, mixed)
        return weights.linear(f"{name}.attn.o", mixed)

    def _fresh(self, layer: int, normed: ir.Value, parts: str) -> list[ir.Value]:
        """Queries, and any keys and values of the new tokens, as attention takes them."""
        hp, name = self.facts.hp, f"layers.{layer}.attn"
        if not hp.kv_rank:
            return self._projected(layer, normed, parts)
        size = self.facts.heads[layer].size
        return latents.projected(
            self.builder, self.weights, hp, name, size, normed, self.profile.turned, self._latent
        )

    def _latent(self, module: str, x: ir.Value) -> ir.Value:
        """What queries, or keys and values, are made of, normed."""
        with self.builder.inside(self.weights.path(module)):
            gamma = self.weights.plain(f"{module}.weight")
            return self.profile.norm(x, gamma, self.facts.latent_eps)

    def _projected(self, layer: int, normed: ir.Value, parts: str) -> list[ir.Value]:
        """Queries, and any keys and values of the new tokens, normed where the family norms them;
        keys are values in layers that have no others."""
        name, facts, weights = f"layers.{layer}.attn", self.facts, self.weights
        there = [part for part in parts if f"{name}.{part}.weight" in weights]
        found = [weights.linear(f"{name}.{part}", normed) for part in there]
        found += found[-1:] * (len(parts) - len(there))
        for at, heads in enumerate((facts.hp.heads, facts.heads[layer].kv_heads)[: len(parts)]):
            module = f"{name}.{'qk'[at]}_norm"
            if facts.norms_turned:
                with self.builder.inside(weights.around(f"{name}.q")):
                    found[at] = self.profile.turned(found[at], heads)
            if f"{module}.weight" not in weights:
                continue
            if facts.norms_heads_whole:
                found[at] = self._normed(module, found[at])
            else:
                with self.builder.inside(weights.path(module)):
                    found[at] = self._normed_heads(layer, module, heads, found[at])
        if facts.norms_values and "v" in parts:
            with self.builder.inside(f"{weights.around(f'{name}.q')}.v_norm"):
                found[2] = self._normed_heads(layer, "", facts.heads[layer].kv_heads, found[2])
        return found

    def _feed_forward(self, layer: int, x: ir.Value, stream: ir.Value) -> ir.Value:
        """``x`` is the stream normed, which experts beside a network norm for themselves."""
        facts, name = self.facts, f"layers.{layer}.ffn"
        sparse = facts.hp.experts and layer not in facts.hp.dense_layers
        beside = sparse and f"{name}.gate.weight" in self.weights
        if sparse and not beside:
            return self._experts(layer, x, x)
        if f"{name}.gate.weight" not in self.weights:
            return plain(self.builder, self.weights, name, facts.activation, x)
        found = gated(self.builder, self.weights, name, facts.activation, x)
        if not beside:
            return found
        found = self._normed(f"layers.{layer}.ffn_own_norm", found)
        moe = f"layers.{layer}.moe"
        total = self._experts(layer, self._normed(f"{moe}.norm", stream), self._routed(moe, stream))
        return self.builder.op("Add", found, self._normed(f"{moe}.post_norm", total))

    def _experts(self, layer: int, x: ir.Value, routed: ir.Value) -> ir.Value:
        facts = self.facts
        return experts(
            self.builder, self.weights, facts.hp, facts.activation, layer, x, routed,
            over_all=facts.routes_over_all, sigmoid=facts.routes_by_sigmoid, clamped=facts.clamped,
        )  # fmt: skip

    def _routed(self, moe: str, stream: ir.Value) -> ir.Value:
        """What a router reads that norms the stream for itself."""
        with self.builder.inside(self.weights.around(f"{moe}.router")):
            scale = self.weights.plain(f"{moe}.router_scale.weight")
            normed = self.profile.norm(stream, scale)
            return self._times(normed, "router.factor", self.facts.hp.hidden**-0.5)

    def _times(self, x: ir.Value, name: str, factor: float | None) -> ir.Value:
        """x times a number, if there is one."""
        if factor is None or factor == 1:
            return x
        return self.builder.op("Mul", x, self._number(name, factor))

    def _number(self, name: str, value: float) -> ir.Value:
        """A constant in the type of the activations."""
        return self.builder.constant(name, np.array(value, DENSE_DTYPES[self.facts.floats]))

    def _entered(
        self, module: str, x: ir.Value, update: ir.Value | None
    ) -> tuple[ir.Value, ir.Value]:
        """What a half of a layer reads, normed where the family norms it there, and the stream
        that its result is added to."""
        if f"{module}.weight" not in self.weights:
            total = x if update is None else self.builder.op("Add", x, update)
            return total, total
        if update is None:
            return self._normed(module, x), x
        if self.facts.layer_norms:
            total = self.builder.op("Add", x, update)
            return self._normed(module, total), total
        with self.builder.inside(self.weights.path(module)):
            return self.profile.add_and_norm(x, update, self.weights.plain(f"{module}.weight"))

    def _normed(self, module: str, x: ir.Value) -> ir.Value:
        """x normed by a module, if the family has it; by none, without a weight."""
        if not module:
            return self.profile.norm(x, None)
        if f"{module}.weight" not in self.weights:
            return x
        with self.builder.inside(self.weights.path(module)):
            gamma = self.weights.plain(f"{module}.weight")
            if not self.facts.layer_norms:
                return self.profile.norm(x, gamma)
            bias = f"{module}.bias"
            beta = [self.weights.plain(bias)] if bias in self.weights else []
            epsilon = self.facts.hp.rms_eps
            return self.builder.op("LayerNormalization", x, gamma, *beta, axis=-1, epsilon=epsilon)

    def _normed_heads(self, layer: int, module: str, heads: int, x: ir.Value) -> ir.Value:
        """``[batch, sequence, heads · size]`` with every head normed by itself."""
        builder, size = self.builder, self.facts.heads[layer].size
        parts = builder.op("Reshape", x, builder.integers(0, 0, heads, size))
        normed = self._normed(module, parts)
        return builder.op("Reshape", normed, builder.integers(0, 0, heads * size))


def places(ids: ir.Value, mask: ir.Value, builder: GraphBuilder) -> ir.Value:
    """Positions i64[batch, sequence] of the new tokens."""
    new = builder.op("Shape", ids, start=1, end=2)
    length = builder.op("Shape", mask, start=1, end=2)
    counted = builder.op("CumSum", mask, builder.integer(1))
    first = builder.op("Sub", length, new)
    found = builder.op("Slice", counted, first, length, builder.integers(1))
    return builder.op("Max", builder.op("Sub", found, builder.integer(1)), builder.integer(0))


def _growth(ids: ir.Value, mask: ir.Value, facts: Facts, builder: GraphBuilder) -> ir.Value:
    """By what queries of the new tokens are multiplied, [batch, sequence, 1]: 1 + b · ln(1 + ⌊p⌋),
    p being the position in original contexts. Rotations leave factors as they are."""
    with builder.inside("model.score_growth"):
        at = places(ids, mask, builder)
        contexts = builder.op("Div", at, builder.integer(facts.hp.original_context))
        one = builder.constant("growth.one", np.array(1, np.float32))
        logs = builder.op("Log", builder.op("Add", builder.cast(contexts, "f32"), one))
        beta = builder.constant("growth.beta", np.array(facts.hp.score_growth, np.float32))
        factors = builder.op("Add", builder.op("Mul", logs, beta), one)
        wide = builder.op("Unsqueeze", factors, builder.integers(2))
        return wide if facts.floats == "f32" else builder.cast(wide, facts.floats)


def _cache_shape(heads: LayerHeads, length: str) -> tuple[str | int, ...]:
    return ("batch_size", heads.kv_heads, length, heads.size)


def _past(layer: int, facts: Facts, builder: GraphBuilder) -> list[ir.Value]:
    shape = _cache_shape(facts.heads[layer], "past_sequence_length")
    names = (f"past_key_values.{layer}.{part}" for part in ("key", "value"))
    return [builder.input(name, facts.floats, shape) for name in names]


def _present(layer: int, facts: Facts, builder: GraphBuilder, values: Sequence[ir.Value]) -> None:
    shape = _cache_shape(facts.heads[layer], "total_sequence_length")
    for value, part in zip(values, ("key", "value"), strict=True):
        builder.output(value, f"present.{layer}.{part}", facts.floats, shape)
