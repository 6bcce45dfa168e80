"""The reference graph on any artifact: bytes reopened, decoded and run through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zenconvert.base.progress import Count
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.scoring import HeadOnStates
from zenconvert.verification.states import final_states, output_head

if TYPE_CHECKING:
    import torch


class TorchEngine:
    """Final hidden states of every window, and logits of any positions on demand, float32."""

    def __init__(
        self, checkpoint: Checkpoint, windows: Sequence[Window], *, device: str, progress: Count
    ) -> None:
        self.states = final_states(checkpoint, windows, device=device, progress=progress)
        head = output_head(checkpoint, device=device)
        self._logits = HeadOnStates(self.states.rows, head).logits

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window."""
        return self._logits(window, begin, end)
