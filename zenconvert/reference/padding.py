"""Windows of several lengths as one batch, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch


class Padding:
    """Windows of several lengths as one batch; padding stands right, where causality keeps it from
    being seen."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.shape = (len(lengths), max(lengths, default=0))
        self.real: torch.Tensor | None = None
        """Where the tokens of the windows stand, int64[tokens]; None where nothing is padded."""
        if min(lengths, default=0) < self.shape[1]:
            inside = torch.arange(self.shape[1]) < torch.tensor(lengths)[:, None]
            self.real = inside.reshape(-1).nonzero().squeeze(1).to(device)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] → [windows, longest, hidden]."""
        windows = list(torch.split(states, self.lengths))
        return torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Activations [..., columns] as [tokens, columns], without padding."""
        flat = values.reshape(-1, values.shape[-1])
        if self.real is None or len(flat) != prod(self.shape):
            return flat  # nothing was padded, or the padding is out already
        return flat[self.real]

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`rows`: zeros where padding was, [windows, longest, columns]."""
        if self.real is not None:
            flat = rows.new_zeros(prod(self.shape), rows.shape[-1])
            flat[self.real] = rows.reshape(-1, rows.shape[-1])
            rows = flat
        return rows.reshape(*self.shape, -1)
