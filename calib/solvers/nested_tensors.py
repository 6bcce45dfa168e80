"""Rows on a nested grid as tensors of the device that solves them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from zenconvert.model.nested import NestedGrid, NestedRows


@cache
def _on_device(levels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Once for each: a copy to the device waits for all that it has to do."""
    return torch.tensor(levels, dtype=torch.float32, device=device)


@dataclass(frozen=True, eq=False)
class NestedTensors:
    """Codes, and all that they are multiplied with; minimums of 0 where the grid has none."""

    grid: NestedGrid
    codes: torch.Tensor
    """uint8[rows, columns], indexes of levels."""
    steps: torch.Tensor
    """float32[rows, blocks], float16 numbers."""
    scales: torch.Tensor
    """float32[rows, groups], whole numbers."""
    offsets: torch.Tensor
    """float32[rows, blocks], float16 numbers."""
    minimums: torch.Tensor
    """float32[rows, groups], whole numbers."""

    @classmethod
    def of(cls, rows: NestedRows) -> NestedTensors:
        """Rows in arrays of torch."""
        steps, scales = rows.steps, rows.scales.float()
        offsets, minimums = torch.zeros_like(steps), torch.zeros_like(scales)
        if rows.offsets is not None and rows.minimums is not None:
            offsets, minimums = rows.offsets, rows.minimums.float()
        return cls(rows.grid, rows.codes.contiguous(), steps, scales, offsets, minimums)

    def to_nested(self) -> NestedRows:
        """The rows where they are, some in the same arrays."""
        scales, minimums = self.scales.to(torch.int16), self.minimums.to(torch.int16)
        if self.grid.minimums is None:
            return NestedRows(self.grid, self.codes, self.steps, scales)
        return NestedRows(self.grid, self.codes, self.steps, scales, self.offsets, minimums)

    @classmethod
    def from_host(cls, rows: NestedRows, device: torch.device) -> NestedTensors:
        """Rows in arrays of numpy."""
        arrays = (rows.codes, rows.steps, rows.scales, rows.offsets, rows.minimums)
        there = [None if a is None else torch.from_numpy(a).to(device) for a in arrays]
        return cls.of(NestedRows(rows.grid, *there))

    def on_host(self) -> NestedRows:
        """The rows in arrays of numpy."""
        rows = self.to_nested()
        arrays = (rows.codes, rows.steps, rows.scales, rows.offsets, rows.minimums)
        return NestedRows(self.grid, *[None if a is None else a.cpu().numpy() for a in arrays])

    @property
    def factors(self) -> torch.Tensor:
        """``step · scale`` of every group, float32[rows, groups]; exact."""
        return self._spread(self.steps) * self.scales

    @property
    def lows(self) -> torch.Tensor:
        """``offset · minimum`` of every group, float32[rows, groups]; 0 where there are none."""
        return self._spread(self.offsets) * self.minimums

    @property
    def levels(self) -> torch.Tensor:
        """What codes stand for, float32[levels]."""
        return _on_device(self.grid.levels, self.codes.device)

    def dequantize(self) -> torch.Tensor:
        """The numbers, float32[rows, columns], as ggml decodes them."""
        levels = self.levels[self.codes.int()].reshape(*self.scales.shape, self.grid.group)
        return (levels.mul_(self.factors[..., None]) - self.lows[..., None]).flatten(1)

    def columns(self, begin: int, end: int) -> NestedTensors:
        """The columns of whole blocks, in tensors of their own."""
        return self._of([t[:, self._places(t, begin, end)].clone() for t in self._tensors()])

    def put_columns(self, begin: int, end: int, other: NestedTensors) -> None:
        """Replace the columns of whole blocks by those of another."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[:, self._places(mine, begin, end)] = theirs

    def _of(self, tensors: list[torch.Tensor]) -> NestedTensors:
        return NestedTensors(self.grid, *tensors)

    def _tensors(self) -> list[torch.Tensor]:
        return [self.codes, self.steps, self.scales, self.offsets, self.minimums]

    def _places(self, tensor: torch.Tensor, begin: int, end: int) -> slice:
        """Where a tensor holds what is of some columns."""
        width, count = self.codes.shape[1], tensor.shape[1]
        return slice(begin * count // width, end * count // width)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(self.grid.block // self.grid.group, dim=1)
