"""The attention heads of every layer, where kinds of layers have others."""

from __future__ import annotations

from dataclasses import dataclass

from zenconvert.model.hyperparameters import Hyperparameters


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """Heads of one layer, and whose keys and values they read."""

    size: int
    """Elements of a head."""
    kv_heads: int
    source: int
    """The layer whose keys and values it reads: itself in most models."""


def layer_heads(hp: Hyperparameters) -> tuple[LayerHeads, ...]:
    """Heads of all layers. The last ones may read the last keys and values that a layer of their
    kind computes."""
    found, latest = [], dict[bool, int]()
    for layer in range(hp.layers):
        full = layer in hp.full_layers
        if layer < hp.layers - hp.sharing:
            latest[full] = layer
        size = (hp.full_head_dim if full else 0) or hp.head_dim
        if hp.kv_rank:  # expanded, keys and values in one size
            size = max(hp.key_dim, hp.value_dim)
        kv_heads = (hp.full_kv_heads if full else 0) or hp.kv_heads
        found.append(LayerHeads(size, kv_heads, latest[full]))
    return tuple(found)
