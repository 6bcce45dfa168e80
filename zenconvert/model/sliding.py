"""Which layers see a sliding window, as transformers reads it from a config of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.model.architecture import Architecture
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.rotations import FULL as FULL

KEYS: Final = {
    "none": (),
    "every_layer": ("sliding_window",),
    "every_layer_if_used": ("sliding_window", "use_sliding_window"),
    "upper_layers": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "pattern": ("sliding_window", "layer_types"),
}
"""Rule of an architecture → the config keys that it reads."""


SLIDES: Final = "sliding_attention"


def layer_types(layers: int, period: int) -> list[str]:
    """What layers are called of which the last of every ``period`` sees everything."""
    return [SLIDES if (layer + 1) % period else FULL for layer in range(layers)]


def windows(
    architecture: Architecture, config: Mapping[str, Any], hp: Hyperparameters
) -> tuple[int | None, ...]:
    """Tokens that every layer sees, itself included; None for all.

    Raises InvalidInput for a config that contradicts itself, Unsupported for other kinds of layers.
    """
    if architecture.block.windows == "none":
        return (None,) * hp.layers
    if architecture.block.windows in ("every_layer", "every_layer_if_used"):
        return (hp.sliding_window,) * hp.layers
    types = config.get("layer_types")
    if types is None and architecture.block.windows == "pattern":
        types = layer_types(hp.layers, hp.window_period or architecture.block.window_period)
    if types is None:
        first = config.get("max_window_layers")
        first = architecture.defaults["max_window_layers"] if first is None else first
        if not isinstance(first, int) or first < 0:
            raise InvalidInput(
                f"max_window_layers should be a number of layers, found {first!r:.100}"
            )
        return tuple(None if i < first else hp.sliding_window for i in range(hp.layers))
    if not isinstance(types, list) or len(types) != hp.layers:
        raise InvalidInput(f"layer_types should name {hp.layers} layers, found {types!r:.100}")
    if unknown := [t for t in types if t not in (FULL, SLIDES)]:
        raise Unsupported(f"layers of type {unknown[0]!r} have no graph here")
    if hp.sliding_window is None and SLIDES in types:
        raise InvalidInput(
            "config.json: layer_types names sliding layers, and there is no sliding_window: say "
            "how many tokens they see, or call them full_attention"
        )
    stuck = architecture.block.rotates == "sliding_or_all" and hp.sliding_window is not None
    if stuck and SLIDES not in types:
        raise Unsupported(
            f"config.json: no layer slides, and sliding_window is {hp.sliding_window}: then no "
            "layer rotates positions, which no graph here does; where it is null all do"
        )
    return tuple(hp.sliding_window if t == SLIDES else None for t in types)
