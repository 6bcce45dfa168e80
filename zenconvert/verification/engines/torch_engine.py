"""The reference graph on any artifact: bytes reopened, decoded and run through transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from zenconvert.calib.reference import Reference, batches
from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint
from zenconvert.recoding import logical_rows


class TorchEngine:
    """Final hidden states of every window, and logits of any positions on demand, float32."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        device: str,
        progress: Callable[[int, int], None],
    ) -> None:
        reference = Reference(checkpoint, logical_rows, device=device)
        self.device = device
        self.hidden = reference.embed(windows)
        groups = batches(windows)
        for layer in range(reference.layers):
            block = reference.block(layer)
            for batch in groups:
                reference.run(block, self.hidden, batch)
            progress(layer + 1, reference.layers)
        self.head = reference.head().to(device)

    def logits(self, window: int, begin: int, end: int) -> NDArray[np.float32]:
        """Logits float32[end - begin, vocab] of positions of one window."""
        hidden = self.hidden[window][begin:end].to(self.device)
        values: NDArray[np.float32] = (hidden @ self.head.T).cpu().numpy()
        return values

    def close(self) -> None:
        """Free the states and the head."""
        del self.hidden, self.head
