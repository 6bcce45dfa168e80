"""The reference model, run layer by layer through transformers' own modules.

One decoder block is in memory at a time (:mod:`zenconvert.calib.block`); the hidden states of all
windows are kept between the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zenconvert.architecture import TensorName
from zenconvert.calib.inputs import by_layer
from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint, Tensor

if TYPE_CHECKING:
    import torch

    from zenconvert.calib.block import Block

ReadRows = Callable[[Tensor, int, int], NDArray[np.float32]]
"""Decoded rows ``[begin, end)`` of a tensor in logical order, float32[n, columns]."""

BATCH_TOKENS = 4096
"""Padded tokens that go through a block at a time."""
_SLAB_ELEMENTS = 1 << 22


class Reference:
    """Streams the blocks of one checkpoint; ``read_rows`` turns its bytes into numbers."""

    def __init__(self, checkpoint: Checkpoint, read_rows: ReadRows, *, device: str) -> None:
        self.checkpoint, self.read_rows, self.device = checkpoint, read_rows, device
        self.layers = checkpoint.hyperparameters.layers
        self.names = list(checkpoint.architecture.tensor_names(checkpoint.hyperparameters))
        self.by_layer = by_layer(self.names)

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A whole tensor in its logical shape, on the CPU; float32 unless told otherwise."""
        import torch

        tensor = self.checkpoint.tensors[name]
        out = torch.empty((tensor.rows, tensor.columns), dtype=dtype or torch.float32)
        for begin, end in slabs(tensor):
            out[begin:end] = torch.from_numpy(self.read_rows(tensor, begin, end))
        return out.reshape(tensor.shape)

    def tensors(self, layer: int) -> list[TensorName]:
        """What decoder block ``layer`` may consist of; after the last layer, the norm as well."""
        norm = [n for n in self.names if n.module.name == "norm"]
        return self.by_layer[layer] + (norm if layer == self.layers - 1 else [])

    def weights(self, layer: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The tensors of block ``layer`` that the checkpoint has, by neutral name, on the CPU."""
        return {
            name.name: self.load(name.name, dtype)
            for name in self.tensors(layer)
            if name.name in self.checkpoint.tensors
        }

    def embed(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Embeddings float32[tokens, hidden] of every window; the table is never held whole."""
        import torch

        ids = np.concatenate([np.asarray(window.ids) for window in windows])
        out = torch.empty(len(ids), self.checkpoint.hyperparameters.hidden)
        for places, values in self.embeddings(ids):
            out[places] = values
        return [part.clone() for part in torch.split(out, [len(w.ids) for w in windows])]

    def embeddings(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pieces of the embeddings of ``ids``: where they stand, and float32[n, hidden]."""
        import torch

        table = self.checkpoint.tensors["embed.weight"]
        for begin, end in slabs(table):
            places = np.flatnonzero((ids >= begin) & (ids < end))
            if len(places):
                values = self.read_rows(table, begin, end)[ids[places] - begin]
                yield torch.from_numpy(places), torch.from_numpy(values)

    def head(self) -> torch.Tensor:
        """The output matrix float32[vocab, hidden]; the embedding where it is tied."""
        tied = "head.weight" not in self.checkpoint.tensors
        return self.load("embed.weight" if tied else "head.weight")

    def block(self, layer: int, weights: Mapping[str, torch.Tensor] | None = None) -> Block:
        """Decoder block ``layer``, made of ``weights``; of the checkpoint's in float32 by default.

        Its output is the hidden state after the block; after the last block, the final norm too.

        Raises InvalidInput when transformers refuses the config or the tensors do not fit it, and
        Unsupported for experts that transformers holds in an unknown way.
        """
        from zenconvert.calib.block import build_block

        if weights is None:
            weights = {k: v.to(self.device) for k, v in self.weights(layer).items()}
        where = f"{self.checkpoint.path}: layer {layer}"
        config = self.checkpoint.config
        return build_block(config, layer, self.tensors(layer), weights, where=where)

    def run(self, block: Block, hidden: list[torch.Tensor], batch: Sequence[int]) -> None:
        """Put some windows through a block, in place."""
        import torch

        lengths = [len(hidden[i]) for i in batch]
        states = block.forward(torch.cat([hidden[i] for i in batch]).to(self.device), lengths)
        for index, rows in zip(batch, torch.split(states.cpu(), lengths), strict=True):
            hidden[index] = rows


def slabs(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a tensor, cut where its row order allows."""
    band = tensor.order.band if tensor.order is not None else 1
    rows = max(band, _SLAB_ELEMENTS // tensor.columns // band * band)
    for begin in range(0, tensor.rows, rows):
        yield begin, min(begin + rows, tensor.rows)


def batches(windows: Sequence[Window]) -> list[list[int]]:
    """Windows of similar length together, about :data:`BATCH_TOKENS` padded tokens a batch."""
    result: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(windows)), key=lambda i: -len(windows[i].ids)):
        if not result or longest * (len(result[-1]) + 1) > BATCH_TOKENS:
            result.append([])
            longest = len(windows[index].ids)
        result[-1].append(index)
    return result
