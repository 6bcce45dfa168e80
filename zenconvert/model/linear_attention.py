"""Linear attention by the gated delta rule: sizes, and the layers that have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.model.config_sizes import MOST_LISTED, Sizes
from zenconvert.model.rotations import FULL

LINEAR: Final = "linear_attention"
"""What configs call such layers."""
_COUNTS: Final = (
    "linear_key_heads", "linear_value_heads", "linear_key_dim", "linear_value_dim", "linear_kernel",
    "attention_interval",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Its sizes; 0 in models without it."""

    linear_key_heads: int = 0
    """Heads of keys, and as many of queries, in layers with linear attention."""
    linear_value_heads: int = 0
    """Heads of values there, of which as many one after the other read one key."""
    linear_key_dim: int = 0
    linear_value_dim: int = 0
    linear_kernel: int = 0
    """Tokens that the convolution before it sees."""
    linear_layers: tuple[int, ...] = ()
    """Layers with linear attention in place of scores."""
    attention_interval: int = 0
    """The last of so many layers has scores, where a config says it like that."""

    @property
    def linear_key_width(self) -> int:
        """Channels of all keys of linear attention."""
        return self.linear_key_heads * self.linear_key_dim

    @property
    def linear_value_width(self) -> int:
        """Channels of all its values."""
        return self.linear_value_heads * self.linear_value_dim

    @property
    def linear_group_width(self) -> int:
        """Channels of the values that read one key."""
        return self.linear_value_width // max(self.linear_key_heads, 1)

    @property
    def linear_channels(self) -> int:
        """Channels that are convolved: queries, keys and values."""
        return 2 * self.linear_key_width + self.linear_value_width

    @property
    def linear_gates(self) -> int:
        """Two numbers of every head of values: how much is forgotten, and how much is written."""
        return 2 * self.linear_value_heads


def linear_sizes(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: Sizes, where: str
) -> dict[str, Any]:
    """Fields of :class:`LinearAttention` for a config; none for a family without it.

    ``keys``: where configs say which layers have it. Raises InvalidInput.
    """
    if "linear" not in keys:
        return {}
    counts = {size: sizes.count(size) for size in _COUNTS}
    return {"linear_layers": _layers(config, keys, sizes, where), **counts}


def _layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: Sizes, where: str
) -> tuple[int, ...]:
    """Layers with linear attention: those that a list names, or all but every so many-th one."""
    layers, heads = sizes.count("layers"), sizes.count("linear_value_heads")
    if layers > MOST_LISTED:
        raise InvalidInput(f"{where}: {layers} layers; at most {MOST_LISTED} can be told apart")
    if heads % (groups := sizes.count("linear_key_heads")):
        raise InvalidInput(
            f"{where}: {heads} heads of values are no multiple of the {groups} heads of keys that "
            "they read in layers with linear attention"
        )
    types, interval = config.get(keys["linear"]), sizes.count("attention_interval")
    if types is None:
        return tuple(layer for layer in range(layers) if (layer + 1) % interval)
    known = isinstance(types, list) and all(kind in (LINEAR, FULL) for kind in types)
    if not known or len(types) != layers:
        raise InvalidInput(
            f"{where}: {keys['linear']} should name {layers} layers {LINEAR} or {FULL}, found "
            f"{types!r:.100}"
        )
    return tuple(layer for layer, kind in enumerate(types) if kind == LINEAR)
