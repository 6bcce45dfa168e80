"""What a walk back will bring, known before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zenconvert.calib.statistics_layout import Entry, gradient_entries
from zenconvert.errors import Unsupported
from zenconvert.model.encoding import DENSE_DTYPES
from zenconvert.reference.reference import Reference
from zenconvert.texts.selection import Selection

if TYPE_CHECKING:
    from zenconvert.calib.walk import WalkSettings

HEAD: Final = "head"
EMBEDDING: Final = "embed"
"""The first and the last step; between them ``layers.N``, from the last one on."""

SEED: Final = 0
"""Of the windows, where there are more than enough, and of the labels."""
_GRADIENT_BYTES: Final = 4


@dataclass(frozen=True)
class BackPlan:
    """A walk back over some windows."""

    reference: Reference
    selection: Selection
    settings: WalkSettings

    @classmethod
    def of(
        cls, reference: Reference, selection: Selection, settings: WalkSettings, tokens: int
    ) -> BackPlan:
        """Over at most so many tokens of every language.

        Raises Unsupported for models whose layers are given more than hidden states.
        """
        if reference.beside:
            raise Unsupported(
                f"{reference.checkpoint.path}: layers of this model read more than hidden states, "
                "and no gradients are known for that; leave --fisher out"
            )
        if (selection.tokens > tokens).any():
            selection = selection.drawn(tokens, SEED)
        return cls(reference, selection, settings)

    @property
    def dtype(self) -> str:
        """What layers compute in: float16 has no room for gradients."""
        return "f32" if self.settings.compute == "f16" else self.settings.compute

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return "head.weight" not in self.reference.checkpoint.tensors

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps, in their order."""
        layers = reversed(range(self.reference.layers))
        return (HEAD, *map(step_of, layers), EMBEDDING)

    @property
    def disk_bytes(self) -> int:
        """What it keeps on the disk at most, beside the file that it fills."""
        hidden, tokens = self.reference.checkpoint.hyperparameters.hidden, self.selection.tokens
        borders = DENSE_DTYPES[self.dtype].itemsize * (self.reference.layers + 2)
        return int(tokens.sum()) * hidden * (borders + 2 * _GRADIENT_BYTES)

    @property
    def facts(self) -> dict[str, Any]:
        """For the metadata of the file."""
        return {
            "labels": "sampled",
            "seed": SEED,
            "tokens": [int(count) for count in self.selection.tokens],
            "dtype": self.dtype,
        }

    def outputs(self, step: str) -> dict[str, int]:
        """Module → outputs, of the linear modules of a step that somebody may quantize."""
        if step == EMBEDDING:
            return {}
        if step == HEAD:
            tensors = self.reference.checkpoint.tensors
            return {HEAD: tensors["embed.weight" if self.tied else "head.weight"].rows}
        return {
            name.name.rpartition(".")[0]: name.shape[0]
            for name in self.reference.by_layer[int(step.rpartition(".")[2])]
            if name.is_weight and name.module.role == "linear"
        }

    def entries(self) -> Iterator[Entry]:
        """The tensors of the file."""
        languages = len(self.selection.languages)
        hidden = self.reference.checkpoint.hyperparameters.hidden
        for step in self.steps:
            moments = step == EMBEDDING or (step == HEAD and self.tied)
            yield from gradient_entries(
                step,
                self.outputs(step),
                languages,
                hidden if moments else None,
                self.vocabulary if step == EMBEDDING else None,
            )

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.reference.checkpoint.tensors["embed.weight"].rows


def step_of(layer: int) -> str:
    """The step of a layer."""
    return f"layers.{layer}"
