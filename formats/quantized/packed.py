"""What a reader of quantized folders gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from zenconvert.model.checkpoint import Tensor


@dataclass
class Packed:
    """The tensors of a folder that are stored in several arrays."""

    by_entry: dict[str, Tensor] = field(default_factory=dict)
    """Entry of the files → the tensor that it is an array of."""
    left: set[str] = field(default_factory=set)
    """Entries that say nothing of the weights."""
    warnings: list[str] = field(default_factory=list)
    """What is left out, and why."""
