"""The reference model, run layer by layer through transformers' own modules.

One decoder block is in memory at a time (:mod:`zenconvert.reference.block`); the hidden states of
all windows are kept between the blocks (:mod:`zenconvert.reference.passage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.row_reader import RowReader
from zenconvert.reference.inputs import by_layer

if TYPE_CHECKING:
    import torch

    from zenconvert.reference.block import Block
    from zenconvert.reference.head import Head
    from zenconvert.reference.loading import Loader, Staged
    from zenconvert.reference.skeleton import Skeleton

ReadRows = Callable[[Tensor, int, int], NDArray[np.float32]]
"""Decoded rows ``[begin, end)`` of a tensor in logical order, float32[n, columns]."""

_FLOAT_KINDS = {"weight", "bias"}  # others (routers' corrections, …) never leave float32


class Reference:
    """Streams the blocks of one checkpoint; ``read_rows`` turns its bytes into numbers."""

    def __init__(self, checkpoint: Checkpoint, read_rows: RowReader, *, device: str) -> None:
        self.checkpoint, self.read_rows, self.device = checkpoint, read_rows, device
        self.layers = checkpoint.hyperparameters.layers
        self.names = list(checkpoint.architecture.tensor_names(checkpoint.hyperparameters))
        self.by_layer = by_layer(self.names)

    @cached_property
    def loader(self) -> Loader:
        """Loads tensors for the device."""
        from zenconvert.reference.loading import Loader

        return Loader(self.read_rows, self.device)

    @cached_property
    def skeleton(self) -> Skeleton:
        """The whole model without weights.

        Raises InvalidInput when transformers refuses the config and Unsupported for a model that is
        not a stack of layers.
        """
        from zenconvert.reference.skeleton import Skeleton

        where = str(self.checkpoint.path)
        return Skeleton(self.checkpoint.config, device=self.device, where=where)

    @property
    def beside(self) -> int:
        """Numbers of a token that a walk keeps beside its hidden states."""
        from zenconvert.reference.beside import numbers

        return numbers(self.checkpoint.hyperparameters)

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A whole tensor in its logical shape, on the device; float32 unless told otherwise."""
        import torch

        return self.loader.load(self.checkpoint.tensors[name], dtype or torch.float32)

    def tensors(self, layer: int) -> list[TensorName]:
        """What decoder block ``layer`` may consist of; after the last layer, the norm as well."""
        norm = [n for n in self.names if n.module.name == "norm"]
        return self.by_layer[layer] + (norm if layer == self.layers - 1 else [])

    def stage(self, layer: int, dtype: torch.dtype | None = None) -> dict[str, Staged]:
        """The tensors of block ``layer`` that the checkpoint has, by neutral name, on their way to
        the device: ``loader.finish`` gives them."""
        import torch

        wanted = {}
        for name in self.tensors(layer):
            if (tensor := self.checkpoint.tensors.get(name.name)) is not None:
                narrow = dtype if name.hf.rpartition(".")[2] in _FLOAT_KINDS else None
                wanted[name.name] = (tensor, narrow or torch.float32)
        return self.loader.stage(wanted)

    def embeddings(
        self, ids: NDArray[np.int64], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What the model's embedding makes of ``ids``, in pieces: where they stand, and
        [n, hidden] in ``dtype``, on the CPU; the table is never held whole.

        Raises InvalidInput for an id that the table has no row for.
        """
        yield from self._looked_up("embed.weight", ids, dtype, self.skeleton.embedding)

    def input_embeddings(
        self, ids: NDArray[np.int64], dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What layers are given of ``ids`` beside hidden states, before :meth:`inputs`, in pieces
        as of :meth:`embeddings`, [n, layers · width]."""
        embedding = self.skeleton.inputs.embedding
        yield from self._looked_up("inputs.embed.weight", ids, dtype, embedding)

    def inputs(self, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        """What makes inputs of layers: (embeddings [n, hidden], rows of :meth:`input_embeddings` by
        layer [n, layers, width]) → the same, to be given to the layers."""
        weights = {name: self.load(f"inputs.{name}.weight", dtype) for name in ("proj", "norm")}
        return self.skeleton.inputs.maker(weights["proj"], weights["norm"])

    def _looked_up(
        self,
        name: str,
        ids: NDArray[np.int64],
        dtype: torch.dtype | None,
        embedding: Callable[[torch.Tensor], torch.nn.Module],
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        from zenconvert.reference.loading import slabs

        table = self.checkpoint.tensors[name]
        if len(odd := ids[(ids < 0) | (ids >= table.rows)]):
            at = int(np.flatnonzero(ids == odd[0])[0])
            raise InvalidInput(
                f"{self.checkpoint.path}: token {at} of the texts has the id {odd[0]}, and the "
                f"embedding has {table.rows} rows; the tokenizer belongs to another model"
            )
        for begin, end in slabs(table):
            places = np.flatnonzero((ids >= begin) & (ids < end))
            if len(places):
                found, local = np.unique(ids[places], return_inverse=True)
                rows = torch.from_numpy(self.read_rows(table, begin, end)[found - begin])
                module = embedding(rows.to(dtype or torch.float32))
                with torch.no_grad():
                    values = module(torch.from_numpy(local))
                yield torch.from_numpy(places), values

    def head(self, dtype: torch.dtype | None = None) -> Head:
        """What turns final states into logits; its weights, the embedding where it is tied, are
        rounded to ``dtype``."""
        from zenconvert.reference.head import Head

        tied = "head.weight" not in self.checkpoint.tensors
        names = {"weight": "embed.weight" if tied else "head.weight", "bias": "head.bias"}
        weights = {
            kind: self.load(name, dtype).float()
            for kind, name in names.items()
            if name in self.checkpoint.tensors
        }
        return Head(self.skeleton, weights)

    def block(self, layer: int, weights: Mapping[str, torch.Tensor]) -> Block:
        """Decoder block ``layer``, made of ``weights``.

        Its output is the hidden state after the block; after the last block, the final norm too.

        Raises InvalidInput when transformers refuses the config or the tensors do not fit it, and
        Unsupported for experts that transformers holds in an unknown way.
        """
        from zenconvert.reference.block import build_block

        where = f"{self.checkpoint.path}: layer {layer}"
        return build_block(self.skeleton, layer, self.tensors(layer), weights, where=where)
