"""Rows on a nested grid as tensors of the device that solves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from zenconvert.model.nested import NestedGrid, NestedRows


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
    def of(cls, rows: NestedRows, device: torch.device) -> NestedTensors:
        """The same rows; on the CPU, some of their arrays."""
        codes, steps = torch.from_numpy(rows.codes), torch.from_numpy(rows.steps)
        scales = torch.from_numpy(rows.scales)
        offsets, minimums = torch.zeros_like(steps), torch.zeros_like(scales)
        if rows.offsets is not None and rows.minimums is not None:
            offsets, minimums = torch.from_numpy(rows.offsets), torch.from_numpy(rows.minimums)
        there = [each.to(device) for each in (codes, steps, scales, offsets, minimums)]
        return cls(rows.grid, there[0], there[1], there[2].float(), there[3], there[4].float())

    def to_rows(self) -> NestedRows:
        """The rows on the host."""
        codes, steps, offsets = (a.cpu().numpy() for a in (self.codes, self.steps, self.offsets))
        scales, minimums = (a.cpu().numpy().astype(np.int16) for a in (self.scales, self.minimums))
        if self.grid.minimums is None:
            return NestedRows(self.grid, codes, steps, scales)
        return NestedRows(self.grid, codes, steps, scales, offsets, minimums)

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
        return torch.tensor(self.grid.levels, dtype=torch.float32, device=self.codes.device)

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
