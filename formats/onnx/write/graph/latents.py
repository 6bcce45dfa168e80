"""Attention whose keys and values are made of one short row of numbers, expanded.

::

    latent [batch, sequence, kv_rank | turned]      of every token
    keys   [batch, sequence, heads · size]          plain parts, each before the turned one of all
    values [batch, sequence, heads · size]

The cache holds keys and values of all heads. onnxruntime's attention has one size for both, so the
shorter of them ends in zeros, which change no score and no sum.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from zenconvert.formats.onnx.write.graph.builder import GraphBuilder
from zenconvert.formats.onnx.write.graph.weights import Weights
from zenconvert.model.hyperparameters import Hyperparameters

Turned = Callable[[ir.Value, int], ir.Value]
"""``[batch, sequence, heads · size]`` and the number of heads → the same, rotated."""
Normed = Callable[[str, ir.Value], ir.Value]
"""A module and what it norms → the result."""


def projected(
    builder: GraphBuilder, weights: Weights, hp: Hyperparameters, name: str, size: int,
    x: ir.Value, turned: Turned, normed: Normed,
) -> list[ir.Value]:  # fmt: skip
    """Queries, keys and values ``[batch, sequence, heads · size]`` of the new tokens, rotated."""
    query = _query(weights, name, x, normed)
    latent = weights.linear(f"{name}.kv_a", x)
    with builder.inside(weights.path(f"{name}.kv_a")):
        row, common = _split(builder, latent, hp.kv_rank, hp.head_dim)
    both = weights.linear(f"{name}.kv_b", normed(f"{name}.kv_a_norm", row))
    with builder.inside(weights.around(f"{name}.kv_b")):
        heads = builder.integers(0, 0, hp.heads, hp.key_dim)
        plain, rotated = _split(
            builder, builder.op("Reshape", query, heads), hp.plain_dim, hp.head_dim
        )
        flat = builder.op("Reshape", rotated, builder.integers(0, 0, hp.heads * hp.head_dim))
        shape = builder.integers(0, 0, hp.heads, hp.head_dim)
        rotated = builder.op("Reshape", turned(flat, hp.heads), shape)
        shape = builder.integers(0, 0, hp.heads, hp.plain_dim + hp.value_dim)
        keys, values = _split(
            builder, builder.op("Reshape", both, shape), hp.plain_dim, hp.value_dim
        )
        one = builder.op("Unsqueeze", turned(common, 1), builder.integers(2))
        of_all = builder.op("Tile", one, builder.integers(1, 1, hp.heads, 1))
        parts = (
            builder.op("Concat", plain, rotated, axis=-1),
            builder.op("Concat", keys, of_all, axis=-1),
            values,
        )
        widths = (hp.key_dim, hp.key_dim, hp.value_dim)
        return [
            _filled(builder, part, width, size, hp.heads)
            for part, width in zip(parts, widths, strict=True)
        ]


def values_of(builder: GraphBuilder, hp: Hyperparameters, size: int, mixed: ir.Value) -> ir.Value:
    """What attention puts out, without the zeros behind values."""
    if size == hp.value_dim:
        return mixed
    heads = builder.op("Reshape", mixed, builder.integers(0, 0, hp.heads, size))
    first = (builder.integers(0), builder.integers(hp.value_dim), builder.integers(3))
    kept = builder.op("Slice", heads, *first)
    return builder.op("Reshape", kept, builder.integers(0, 0, hp.heads * hp.value_dim))


def _query(weights: Weights, name: str, x: ir.Value, normed: Normed) -> ir.Value:
    """Of the states themselves, or of a shorter row."""
    if f"{name}.q.weight" in weights:
        return weights.linear(f"{name}.q", x)
    row = normed(f"{name}.q_a_norm", weights.linear(f"{name}.q_a", x))
    return weights.linear(f"{name}.q_b", row)


def _split(builder: GraphBuilder, x: ir.Value, first: int, second: int) -> list[ir.Value]:
    sizes = builder.integers(first, second)
    return builder.ops("Split", [x, sizes], [True, True], axis=-1)


def _filled(builder: GraphBuilder, x: ir.Value, width: int, size: int, heads: int) -> ir.Value:
    """``[batch, sequence, heads, width]`` → ``[batch, sequence, heads · size]``."""
    if width < size:
        x = builder.op("Pad", x, builder.integers(*[0] * 7, size - width))
    return builder.op("Reshape", x, builder.integers(0, 0, heads * size))
