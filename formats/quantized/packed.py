"""What a reader of quantized folders gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zenconvert.errors import CorruptFile
from zenconvert.formats.hf.reader import Folder
from zenconvert.model.checkpoint import Tensor


@dataclass
class Packed:
    """The tensors of a folder that are stored in several arrays."""

    by_entry: dict[str, Tensor] = field(default_factory=dict)
    """Entry of the files → the tensor that it is an array of."""
    stacks: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """Entry of the files → the tensors of all experts that it is an array of."""
    left: set[str] = field(default_factory=set)
    """Entries that say nothing of the weights."""
    predicting: dict[str, Tensor] = field(default_factory=dict)
    """Name → tensor of a layer that predicts further tokens; none where some are not read."""
    warnings: list[str] = field(default_factory=list)
    """What is left out, and why."""

    def refuse_extra(self, folder: Folder, pieces: Sequence[str]) -> None:
        """Raise CorruptFile for ``pieces`` of weights that are not stored so."""
        for name, entry in folder.entries.items():
            module, _, last = name.rpartition(".")
            if last in pieces and name not in self.by_entry and name not in self.left:
                weight = folder.entries.get(f"{module}.weight")
                what = f"{module}.weight is {weight.dtype}" if weight else "its weight is missing"
                raise CorruptFile(f"{entry.path}: {name} is there, and {what}")
