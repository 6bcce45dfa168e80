"""What every layer is given of every token beside hidden states, for all windows.

The layers' parts of it stand one after the other, so that one layer's are read together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.reference.batches import Batch
from zenconvert.reference.hidden import HiddenStates, Place
from zenconvert.reference.reference import Reference

_TOKENS: Final = 1024
"""Tokens whose inputs are made at a time."""


class LayerInputs:
    """Rows [layers · tokens, width]; nothing where a model has no such inputs."""

    def __init__(
        self, reference: Reference, tokens: int, dtype: torch.dtype, *, place: Place, folder: Path
    ) -> None:
        hp = reference.checkpoint.hyperparameters
        self.reference, self.tokens, self.layers = reference, tokens, hp.layers
        self.rows: HiddenStates | None = None
        if hp.input_width:
            self.rows = HiddenStates(
                hp.layers * tokens, hp.input_width, dtype, device=reference.device, place=place,
                folder=folder, name="inputs",
            )  # fmt: skip

    def fill(self, ids: NDArray[np.int64], embedded: HiddenStates) -> None:
        """Make the inputs of tokens that are ``embedded``."""
        if self.rows is None:
            return
        of_layers = torch.arange(self.layers)[:, None] * self.tokens
        for places, values in self.reference.input_embeddings(ids, self.rows.states.dtype):
            self.rows.put((of_layers + places).flatten(), self._by_layer(values))
        make = self.reference.inputs(self.rows.states.dtype)
        for begin in range(0, self.tokens, _TOKENS):
            end = min(begin + _TOKENS, self.tokens)
            places = (of_layers + torch.arange(begin, end)).flatten()
            rows = self.rows.states[places.to(self.rows.states.device)].to(self.rows.device)
            own = rows.reshape(self.layers, end - begin, -1).transpose(0, 1)
            made = make(embedded.slice(begin, end), own)
            self.rows.put(places, made.transpose(0, 1).flatten(0, 1))

    def _by_layer(self, values: torch.Tensor) -> torch.Tensor:
        """[tokens, layers · width] → [layers · tokens, width]."""
        found = values.reshape(len(values), self.layers, -1).transpose(0, 1)
        return found.reshape(len(values) * self.layers, -1)

    def read(self, layer: int, batch: Batch) -> torch.Tensor | None:
        """[tokens, width] of a batch, on the device."""
        if self.rows is None:
            return None
        begin = layer * self.tokens + batch.begin
        return self.rows.slice(begin, begin + batch.tokens)

    def close(self) -> None:
        """Free the rows."""
        if self.rows is not None:
            self.rows.close()
