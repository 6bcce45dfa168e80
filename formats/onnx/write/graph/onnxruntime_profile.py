"""Norms and attention in onnxruntime's own operators, which its providers have fast kernels for.

Sources: onnxruntime ``contrib_defs.cc`` and ``bert_defs.cc`` (GroupQueryAttention,
SkipSimplifiedLayerNormalization).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.rotary import LONG_TABLES, SLIDING_TABLES, TABLES, border, tables_of
from zenconvert.formats.onnx.write.graph.builder import CONTRIB, GraphBuilder
from zenconvert.formats.onnx.write.graph.decoder import Facts, places
from zenconvert.formats.onnx.write.graph.weights import Weights


class OnnxruntimeProfile:
    """Opset 21 and ``com.microsoft`` 1: onnxruntime 1.18 and later."""

    def __init__(self, facts: Facts, builder: GraphBuilder, weights: Weights) -> None:
        self.opsets, self.ir_version = {"": 21, CONTRIB: 1}, 10
        self.facts, self.builder, self.weights = facts, builder, weights
        self.lengths: list[ir.Value] = []
        self.tables: list[ir.Value] = []
        self.sliding_tables: list[ir.Value] = []
        self.places: list[ir.Value] = []

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Lengths of the sequences and of the cache; rows are padded on the right."""
        builder, facts = self.builder, self.facts
        with builder.inside("model.attn_mask"):
            ones = builder.op("ReduceSum", mask, builder.integers(1), keepdims=0)
            last = builder.cast(builder.op("Sub", ones, builder.integer(1)), "i32")
            length = builder.op("Gather", builder.op("Shape", mask), builder.integer(1))
            total = builder.cast(length, "i32")
        found = {
            table.names: [self.weights.table(n, facts.floats, table.shape) for n in table.names]
            for table in tables_of(facts.hp, facts.windows)
        }
        self.tables, self.sliding_tables = found.get(TABLES, []), found.get(SLIDING_TABLES, [])
        if LONG_TABLES in found:
            with builder.inside("model.rotary_emb"):
                long = builder.op("Greater", length, builder.integer(border(facts.hp)))
                self.tables = builder.either(long, found[LONG_TABLES], self.tables)
        self.lengths = [last, total]
        if facts.turns_apart:
            with builder.inside("model.rotary_emb"):
                self.places = [places(ids, mask, builder)]

    def turned(self, x: ir.Value, heads: int) -> ir.Value:
        """Rotated by tables, which this operator reads as attention does."""
        return self.builder.op(
            "RotaryEmbedding",
            x,
            *self.places,
            *self.tables,
            domain=CONTRIB,
            num_heads=heads,
            interleaved=int(self.facts.rotary_pairs),
        )

    def norm(self, x: ir.Value, gamma: ir.Value | None, epsilon: float | None = None) -> ir.Value:
        """In standard operators: the fused one stands in a domain where it does not belong."""
        builder, floats = self.builder, self.facts.floats
        wide = x if floats == "f32" else builder.cast(x, "f32")
        square = builder.op("Mul", wide, wide)
        mean = builder.op("ReduceMean", square, builder.integers(-1), keepdims=1)
        own = self.facts.hp.rms_eps if epsilon is None else epsilon
        name = "const.epsilon" if own == self.facts.hp.rms_eps else "const.epsilon.latent"
        least = builder.constant(name, np.array(own, np.float32))
        root = builder.op("Sqrt", builder.op("Add", mean, least))
        scaled = builder.op("Div", wide, root)
        scaled = scaled if floats == "f32" else builder.cast(scaled, floats)
        return scaled if gamma is None else builder.op("Mul", scaled, gamma)

    def add_and_norm(
        self, x: ir.Value, update: ir.Value, gamma: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The norm of a sum, and the sum."""
        normed, total = self.builder.ops(
            "SkipSimplifiedLayerNormalization",
            [x, update, gamma],
            [True, False, False, True],
            domain=CONTRIB,
            epsilon=self.facts.hp.rms_eps,
        )
        return normed, total

    def attention(
        self,
        layer: int,
        qkv: Sequence[ir.Value],
        past: Sequence[ir.Value],
        sinks: ir.Value | None,
    ) -> list[ir.Value]:
        """Rotation, cache, window and attention in one operator."""
        hp, window = self.facts.hp, self.facts.windows[layer]
        rotates = self.facts.rotating[layer] and not self.facts.turns_apart
        tables = self.tables
        if window is not None and self.sliding_tables:
            tables = self.sliding_tables
        softcap: dict[str, Any] = {} if hp.score_softcap is None else {"softcap": hp.score_softcap}
        inputs = [*qkv, *past, *self.lengths, *(tables if rotates else (None, None))]
        inputs += [] if sinks is None else [None, None, sinks]
        while inputs[-1] is None:
            inputs.pop()
        return self.builder.ops(
            "GroupQueryAttention",
            inputs,
            [True, True, True],
            domain=CONTRIB,
            num_heads=hp.heads,
            kv_num_heads=self.facts.heads[layer].kv_heads,
            scale=self.facts.score_scale,
            do_rotary=int(rotates),
            rotary_interleaved=int(self.facts.rotary_pairs),
            local_window_size=-1 if window is None else window,
            **softcap,
        )
