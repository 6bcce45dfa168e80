"""What a walk shows of one layer, and what its consumer can do with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.calib.statistics import InputStatistics
from zenconvert.errors import UsageError
from zenconvert.model.encoding import Dense
from zenconvert.reference.block import Block
from zenconvert.reference.reference import Reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LayerStatistics:
    """Statistics of some or all inputs of a layer, valid until the walk goes on."""

    def __init__(
        self,
        layer: int | None,
        inputs: Iterable[InputStatistics],
        reference: Reference,
        *,
        block: Block | None = None,
        last: bool = True,
        routed: NDArray[np.int64] | None = None,
        replaced: dict[str, torch.Tensor] | None = None,
        states: Iterable[tuple[int, torch.Tensor]] = (),
    ) -> None:
        self.layer = layer
        """None for the output head, which comes after the last layer."""
        self.inputs = {item.name: item for item in inputs}
        """By the name of the first module that reads each."""
        self.last = last
        """Whether this is the last part of the layer."""
        self.routed = routed
        """Tokens that the router sent to every expert, int64[languages, experts]; given with the
        last part of a layer that has experts."""
        self._reference, self._block = reference, block
        self._replaced, self._states = replaced, states

    @property
    def modules(self) -> tuple[str, ...]:
        """Neutral names of all modules that read one of the inputs."""
        return tuple(module for item in self.inputs.values() for module in item.modules)

    def of(self, module: str) -> InputStatistics:
        """Statistics of what a module reads. Raises UsageError for a module that is not here."""
        for item in self.inputs.values():
            if module in item.modules:
                return item
        raise UsageError(f"there are no statistics of {module!r} here, only of {self.modules}")

    def weight(self, tensor: str) -> torch.Tensor:
        """A tensor of the layer in full precision, float32 on the walk's device.

        ``tensor`` is a neutral name such as ``layers.3.attn.q.weight`` or ``layers.3.attn_norm.
        weight``. What was replaced is given as it was replaced.
        """
        if self._replaced is not None and tensor in self._replaced:
            return self._replaced[tensor]
        stored = self._reference.checkpoint.tensors[tensor].encoding.dense
        if self._block is not None:
            held = self._block.weight(tensor)
            narrow = Dense(_NAMES[held.dtype])
            if narrow.dtype == "f32" or (stored is not None and stored.widens_to(narrow)):
                return held.float()
        return self._reference.load(tensor)

    def replace(self, tensor: str, value: torch.Tensor) -> None:
        """Let what follows be computed with another tensor, dequantized, float32 of the same shape.

        Raises UsageError when the walk is not sequential.
        """
        if self._replaced is None or self._block is None:
            raise UsageError("only a sequential walk takes weights back")
        self._replaced[tensor] = value
        self._block.set_weight(tensor, value)

    def states(self) -> Iterator[tuple[int, torch.Tensor]]:
        """With the output head: (number of a window, its final hidden states [tokens, hidden] in
        the dtype of the walk), in an order of its own."""
        yield from self._states

    def release(self) -> None:
        """Forget everything; the walk calls it before it goes on."""
        self.inputs.clear()
        self._block = self._replaced = None
        self._states = ()
