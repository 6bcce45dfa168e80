"""Tensors of a checkpoint in torch: read by several threads, decoded where they are needed.

For a GPU, rows stay in their encoding until they are there: fewer bytes cross over, and the device
decodes them many times as fast. The numbers are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from typing import Final

import torch

from zenconvert.base.machine import usable_cores
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.pieces import ROW_UNIT
from zenconvert.model.row_reader import Read, RowReader, moved
from zenconvert.model.rows import Rows

_SLAB_ELEMENTS: Final = 1 << 22
_MOST_THREADS: Final = 16
"""Every one holds a slab and what decoding takes beside it."""


@dataclass(slots=True)
class Staged:
    """A tensor on its way: numbers, or rows that the device will decode."""

    tensor: Tensor
    dtype: torch.dtype
    values: torch.Tensor | None
    """On the host, already decoded."""
    slabs: list[tuple[int, int, Future[Rows | None]]]
    """Rows ``[begin, end)``; of decoded ones nothing is left."""


class Loader:
    """Loads tensors for one device."""

    def __init__(self, rows: RowReader, device: str) -> None:
        self.rows, self.device = rows, device
        self.on_host = torch.device(device).type == "cpu"

    def load(self, tensor: Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A whole tensor in its logical shape, on the device."""
        return self.finish(self.stage({"": (tensor, dtype)}))[""]

    def stage(self, wanted: Mapping[str, tuple[Tensor, torch.dtype]]) -> dict[str, Staged]:
        """Everything that can be done before the device has room."""
        found = {}
        with ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:
            for name, (tensor, dtype) in wanted.items():
                values = None
                if self.on_host:
                    values = torch.empty((tensor.rows, tensor.columns), dtype=dtype)
                found[name] = Staged(tensor, dtype, values, [])
                read = self.rows.in_slabs(tensor, _step(tensor))
                for begin, end in slabs(tensor):
                    future = pool.submit(self._stage, found[name], read, begin, end)
                    found[name].slabs.append((begin, end, future))
        return found

    def _stage(self, staged: Staged, read: Read, begin: int, end: int) -> Rows | None:
        rows = read(begin, end)
        if staged.values is None:
            return rows
        numbers = self.rows.numbers(rows, staged.tensor)
        staged.values[begin:end] = torch.from_numpy(numbers)
        return None

    def finish(self, staged: dict[str, Staged]) -> dict[str, torch.Tensor]:
        """The tensors in their logical shapes, on the device; empties ``staged``.

        Raises what reading raised.
        """
        found = {}
        while staged:
            name = next(iter(staged))
            one = staged.pop(name)
            found[name] = self._finished(one).reshape(one.tensor.shape)
        return found

    def _finished(self, staged: Staged) -> torch.Tensor:
        tensor, values = staged.tensor, staged.values
        if values is None:
            shape = (tensor.rows, tensor.columns)
            values = torch.empty(shape, dtype=staged.dtype, device=self.device)
        while staged.slabs:
            begin, end, future = staged.slabs.pop(0)
            if (rows := future.result()) is not None:
                values[begin:end] = self.rows.numbers(moved(rows, self.device), tensor)
        return values


def slabs(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a tensor, cut where its row order allows."""
    step = _step(tensor)
    for begin in range(0, tensor.rows, step):
        yield begin, min(begin + step, tensor.rows)


def _step(tensor: Tensor) -> int:
    band = lcm(ROW_UNIT, tensor.order.band if tensor.order is not None else 1)
    return max(band, _SLAB_ELEMENTS // tensor.columns // band * band)
