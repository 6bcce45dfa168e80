"""Norms and attention in operators of the ONNX standard alone.

Sources: ONNX operators Attention 24, RotaryEmbedding 23, RMSNormalization 23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.rotary import (
    SLIDING_TABLES,
    TABLES,
    Table,
    border,
    frequencies,
    tables_of,
)
from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.decoder import Facts
from zenconvert.model.encoding import DENSE_DTYPES

RATES: Final = "rotary.frequencies"
_NAMES: Final = {TABLES: RATES, SLIDING_TABLES: f"{RATES}.sliding"}
"""Names of tables → of the frequencies that graphs without tables have."""


class StandardProfile:
    """Opset 24, or 25 where there are integers of two bits."""

    def __init__(self, facts: Facts, builder: GraphBuilder, *, two_bits: bool) -> None:
        self.facts, self.builder = facts, builder
        self.opsets = {"": 25 if two_bits else 24}
        self.ir_version = 13 if two_bits else 12
        self.masks: dict[int | None, ir.Value] = {}
        self.rotary: dict[tuple[str, str], list[ir.Value]] = {}
        """Cosines and sines of the new tokens, in the place of tables."""

    def begin(self, ids: ir.Value, mask: ir.Value) -> None:
        """Who sees whom, and the rotation of every token; padding may stand left or right."""
        builder = self.builder
        with builder.inside("model.attn_mask"):
            new = builder.op("Shape", ids, start=1, end=2)
            length = builder.op("Shape", mask, start=1, end=2)
            past = builder.op("Sub", length, new)
            self._masks(mask, past, length)
        with builder.inside("model.rotary_emb"):
            places = self._places(mask, past, length)
            for table in tables_of(self.facts.hp, self.facts.windows):
                if not table.long:
                    self.rotary[table.names] = self._angles(places, table)

    def _masks(self, mask: ir.Value, past: ir.Value, length: ir.Value) -> None:
        """bool[batch, 1, sequence, total] for every window: the keys that a query sees."""
        builder = self.builder
        zero, one = builder.integer(0), builder.integer(1)
        end = builder.op("Squeeze", length)
        keys = builder.op("Range", zero, end, one)
        places = builder.op("Range", builder.op("Squeeze", past), end, one)
        queries = builder.op("Unsqueeze", places, builder.integers(1))
        real = builder.op(
            "Unsqueeze", builder.op("Cast", mask, to=int(ir.DataType.BOOL)), builder.integers(1, 2)
        )
        before = builder.op("LessOrEqual", keys, queries)
        itself = builder.op("Equal", keys, queries)
        for window in dict.fromkeys(self.facts.windows):
            seen = before
            if window is not None:
                first = builder.op("Sub", queries, builder.integer(window))
                seen = builder.op("And", seen, builder.op("Greater", keys, first))
            # a token of padding sees itself, so that no row is empty and becomes NaN
            self.masks[window] = builder.op("Or", builder.op("And", seen, real), itself)

    def _places(self, mask: ir.Value, past: ir.Value, length: ir.Value) -> ir.Value:
        """Positions f32[batch, sequence, 1] of the new tokens."""
        builder = self.builder
        counted = builder.op("CumSum", mask, builder.integer(1))
        places = builder.op("Slice", counted, past, length, builder.integers(1))
        one = builder.integer(1)
        places = builder.op("Max", builder.op("Sub", places, one), builder.integer(0))
        return builder.op("Unsqueeze", builder.cast(places, "f32"), builder.integers(2))

    def _angles(self, places: ir.Value, table: Table) -> list[ir.Value]:
        """Cosines and sines [batch, sequence, rotated channels / 2] of positions."""
        builder, floats, found = self.builder, self.facts.floats, []
        numbers, amplitude = frequencies(table.hp)
        rates = builder.constant(_NAMES[table.names], numbers)
        if last := border(table.hp):
            long = builder.constant(f"{RATES}.long", frequencies(table.hp, long=True)[0])
            end = builder.constant("rotary.border", np.array(last - 1, np.float32))
            beyond = builder.op("Greater", builder.op("ReduceMax", places, keepdims=0), end)
            rates = builder.op("Where", beyond, long, rates)
        angles = builder.op("Mul", places, rates)
        for function in ("Cos", "Sin"):
            values = builder.op(function, angles)
            if amplitude != 1:
                factor = np.array(amplitude, np.float32)
                values = builder.op("Mul", values, builder.constant("rotary.amplitude", factor))
            found.append(values if floats == "f32" else builder.cast(values, floats))
        return found

    def turned(self, x: ir.Value, heads: int) -> ir.Value:
        """Rotated by the cosines and sines of the new tokens."""
        return self._rotated(x, heads, self.rotary[TABLES], {})

    def _rotated(
        self, x: ir.Value, heads: int, rotary: Sequence[ir.Value], how: dict[str, Any]
    ) -> ir.Value:
        pairs: dict[str, Any] = {"interleaved": 1} if self.facts.rotary_pairs else {}
        make = self.builder.shared
        return make("RotaryEmbedding", x, *rotary, num_heads=heads, **pairs, **how)

    def norm(self, x: ir.Value, gamma: ir.Value | None, epsilon: float | None = None) -> ir.Value:
        """The norm over the last dimension."""
        least = self.facts.hp.rms_eps if epsilon is None else epsilon
        if gamma is None:
            ones = np.ones(1, DENSE_DTYPES[self.facts.floats])
            gamma = self.builder.constant("const.ones", ones)
        return self.builder.op("RMSNormalization", x, gamma, axis=-1, epsilon=least)

    def add_and_norm(
        self, x: ir.Value, update: ir.Value, gamma: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The norm of a sum, and the sum."""
        total = self.builder.op("Add", x, update)
        return self.norm(total, gamma), total

    def attention(
        self,
        layer: int,
        qkv: Sequence[ir.Value],
        past: Sequence[ir.Value],
        sinks: ir.Value | None,
    ) -> list[ir.Value]:
        """Any rotation of queries and keys, then attention over the cache and the new tokens."""
        assert sinks is None  # who asks for a graph is told before
        builder, hp, kv_heads = self.builder, self.facts.hp, self.facts.heads[layer].kv_heads
        query, key, value = qkv
        window = self.facts.windows[layer]
        if self.facts.rotating[layer] and not self.facts.turns_apart:
            sliding = window is not None and SLIDING_TABLES in self.rotary
            rotary = self.rotary[SLIDING_TABLES if sliding else TABLES]
            how: dict[str, Any] = {}
            if hp.rotary_dim != hp.head_dim:
                how["rotary_embedding_dim"] = hp.rotary_dim
            query = self._rotated(query, hp.heads, rotary, how)
            key = self._rotated(key, kv_heads, rotary, how)
        softcap: dict[str, Any] = {} if hp.score_softcap is None else {"softcap": hp.score_softcap}
        return builder.ops(
            "Attention",
            [query, key, value, self.masks[window], *past],
            [True, True, True],
            q_num_heads=hp.heads,
            kv_num_heads=kv_heads,
            scale=self.facts.score_scale,
            **softcap,
        )
