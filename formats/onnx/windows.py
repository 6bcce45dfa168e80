"""Which layers see a sliding window, as transformers reads it from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.hyperparameters import Hyperparameters


def windows(config: Mapping[str, Any], hp: Hyperparameters) -> tuple[int | None, ...]:
    """Tokens that every layer sees, itself included; None for all.

    Raises InvalidInput for a config that contradicts itself, Unsupported for other kinds of layers.
    """
    types = config.get("layer_types")
    if types is None:
        if hp.sliding_window is None:
            return (None,) * hp.layers
        # Qwen2 slides from this layer on; the other families in all layers
        first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else 0
        return tuple(None if i < first else hp.sliding_window for i in range(hp.layers))
    if not isinstance(types, list) or len(types) != hp.layers:
        raise InvalidInput(f"layer_types should name {hp.layers} layers, found {types!r}")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"layers of type {sorted(unknown)[0]!r} cannot be put into a graph")
    if hp.sliding_window is None and "sliding_attention" in types:
        raise InvalidInput("layer_types names sliding layers, and there is no sliding_window")
    return tuple(hp.sliding_window if t == "sliding_attention" else None for t in types)
