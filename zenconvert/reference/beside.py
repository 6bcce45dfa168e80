"""What goes from the texts, or from layer to layer, beside hidden states.

Some models give every layer something of every token (an embedding of its own, joined with what a
projection makes of the token's embedding), and have layers that read the keys and values of an
earlier layer. Both are rows, one a token, of all windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.layer_heads import layer_heads
from zenconvert.model.sliding import FULL, SLIDES

if TYPE_CHECKING:
    import torch

    from zenconvert.reference.padding import Padding

KeysValues = dict[str, "tuple[torch.Tensor, torch.Tensor]"]
"""Kind of layers → keys and values, [windows, heads, tokens, size], of those that have none."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Keys and values that a layer computes and later ones of its kind read."""

    kind: str
    layer: int
    heads: int
    size: int
    """Elements of a head."""
    begin: int
    """First of their columns among those of all kinds: keys, then values."""

    @property
    def columns(self) -> int:
        """Elements of keys and values of a token."""
        return 2 * self.heads * self.size


def shared(hp: Hyperparameters) -> tuple[Shared, ...]:
    """What layers read of others: of the last one of each kind that has keys of its own."""
    if not hp.sharing:
        return ()
    found: list[Shared] = []
    heads = layer_heads(hp)
    sources = {of.source for layer, of in enumerate(heads) if of.source != layer}
    for layer in sorted(sources, key=lambda n: n in hp.full_layers):
        kind = FULL if layer in hp.full_layers else SLIDES
        begin = sum(one.columns for one in found)
        found.append(Shared(kind, layer, heads[layer].kv_heads, heads[layer].size, begin))
    return tuple(found)


def columns(hp: Hyperparameters) -> int:
    """Elements of a token that layers read of others."""
    return sum(one.columns for one in shared(hp))


def numbers(hp: Hyperparameters) -> int:
    """Numbers of a token that a walk keeps beside its hidden states."""
    return columns(hp) + hp.all_inputs


@dataclass(slots=True)
class Beside:
    """What a layer is given of a batch beside hidden states, and what it gives to later ones."""

    inputs: torch.Tensor | None = None
    """[tokens, width]."""
    handed: torch.Tensor | None = None
    """Keys and values of all kinds, [tokens, columns]."""
    given: tuple[Shared, ...] = field(default=())
    """What stands in ``handed``."""

    def read(self, layer: int, padding: Padding) -> KeysValues:
        """What later layers read of those before ``layer``."""
        found: KeysValues = {}
        if self.handed is None:
            return found
        for one in self.given:
            if one.layer < layer:
                rows = padding.pad(self.handed[:, one.begin : one.begin + one.columns])
                both = rows.reshape(*rows.shape[:2], 2, one.heads, one.size)
                keys, values = both.permute(2, 0, 3, 1, 4).contiguous()
                found[one.kind] = (keys, values)
        return found

    def write(self, layer: int, padding: Padding, found: KeysValues) -> None:
        """Keep what ``layer`` computed for later ones."""
        if self.handed is None:
            return
        import torch

        for one in self.given:
            if one.layer == layer:
                both = torch.stack(found[one.kind]).permute(1, 3, 0, 2, 4)
                rows = padding.rows(both.flatten(2).contiguous())
                self.handed = self.handed.clone()  # whoever keeps it says so
                self.handed[:, one.begin : one.begin + one.columns] = rows
