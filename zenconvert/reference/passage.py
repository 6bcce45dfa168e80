"""The passage of windows through a model, layer by layer: what calibration and verification share.

Hidden states of all windows lie on the device, in memory or on disk; one block is in memory at a
time, and the weights of the next one are read while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from zenconvert.reference.batches import Batch, make_batches, most_tokens
from zenconvert.reference.beside import Beside, columns, shared
from zenconvert.reference.block import Block
from zenconvert.reference.hidden import HiddenStates, Place
from zenconvert.reference.layer_inputs import LayerInputs
from zenconvert.reference.loading import Staged
from zenconvert.reference.padding import Padding
from zenconvert.reference.reference import Reference
from zenconvert.texts.windows import Window


class Enough(Exception):
    """Everything that was asked for has been seen; the rest of the block need not run."""


class Passage:
    """Windows on their way; a context manager, so that threads and states go away again.

    ``states`` are the hidden states that go into the next layer, or the final ones.
    """

    def __init__(
        self,
        reference: Reference,
        windows: Sequence[Window],
        languages: Sequence[str],
        dtype: torch.dtype,
        *,
        place: Place,
        folder: Path,
        most: int | None = None,
    ) -> None:
        """``folder`` takes the file of states that are kept on disk. ``most``: padded tokens that
        go through a block at a time, by default what suits the device."""
        self.reference, self.windows, self.dtype = reference, windows, dtype
        self.batches = make_batches(
            windows,
            languages,
            most or most_tokens(reference.device),
            reference.checkpoint.hyperparameters.length_border,
        )
        hp, tokens = reference.checkpoint.hyperparameters, sum(len(w.ids) for w in windows)
        self.shared = shared(hp)
        self.states = HiddenStates(
            tokens, hp.hidden, dtype, device=reference.device, place=place, folder=folder,
            beside=columns(hp),
        )  # fmt: skip
        self.inputs = LayerInputs(reference, tokens, dtype, place=place, folder=folder)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._next: tuple[int, Future[dict[str, Staged]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def embed(self) -> None:
        """Fill the states with what the first layer is given."""
        self.look_up()
        self.enter()

    def look_up(self) -> None:
        """Fill the states with what the embedding gives."""
        ordered = [self.windows[i].ids for batch in self.batches for i in batch.windows]
        for places, values in self.reference.embeddings(np.concatenate(ordered), self.dtype):
            self.states.put(places, values)
        self.inputs.fill(np.concatenate(ordered), self.states)

    def enter(self) -> None:
        """Put what the first layer is given in the place of what the embedding gives."""
        for batch in self.batches:
            with torch.no_grad():
                entered = self.entered(self.states.read(batch), batch)
            self.states.write(batch, entered)

    def entered(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the first layer is given where the embedding gives ``states`` of a batch, [tokens,
        hidden] both."""
        padding = Padding(batch.lengths, states.device)
        return padding.rows(self.reference.skeleton.enter(padding.pad(states)))

    def block(self, layer: int, step: int = 1) -> Block:
        """A layer on the device. Whoever asks must have let go of the one before; the weights of
        the next one, ``step`` layers on, are being read when this returns."""
        begun, self._next = self._next, None
        weights = begun[1] if begun is not None and begun[0] == layer else self._read(layer)
        staged = weights.result()
        del weights, begun
        found = self.reference.loader.finish(staged)
        if 0 <= layer + step < self.reference.layers:
            self._next = (layer + step, self._read(layer + step))
        return self.reference.block(layer, found)

    def _read(self, layer: int) -> Future[dict[str, Staged]]:
        return self._pool.submit(self.reference.stage, layer, self.dtype)

    def forward(
        self,
        block: Block,
        *,
        keep: bool = True,
        before: Callable[[Batch], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Put all windows through a block; ``keep`` its outputs in place of the inputs.

        ``before`` is called with every batch and ``after`` when it is done. A hook may raise
        ``Enough`` to end the batch.
        """
        for batch in self.batches:
            if before is not None:
                before(batch)
            with suppress(Enough):
                beside = self._beside(block.number, batch)
                states = block.forward(self.states.read(batch), batch.lengths, beside)
                if keep:
                    self.states.write(batch, states)
                if keep and beside.handed is not None:
                    self.states.write_beside(batch, beside.handed)
            if after is not None:
                after()

    def _beside(self, layer: int, batch: Batch) -> Beside:
        """What a layer is given of a batch beside hidden states."""
        handed = self.states.read_beside(batch) if self.shared else None
        return Beside(self.inputs.read(layer, batch), handed, self.shared)

    def close(self) -> None:
        """Free the states, and what layers are given beside them."""
        self.states.close()
        self.inputs.close()

    def by_window(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(window, its states [tokens, hidden] on the CPU), in the order of the batches."""
        for batch in self.batches:
            rows = torch.split(self.states.read(batch).cpu(), list(batch.lengths))
            yield from zip(batch.windows, rows, strict=True)
