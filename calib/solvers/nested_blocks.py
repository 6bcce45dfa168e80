"""The float16 steps and offsets of blocks, fitted to codes, scales and minimums as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zenconvert.calib.solvers.grid import round_scale
from zenconvert.calib.solvers.nested_tensors import NestedTensors


def refit_blocks(
    rows: NestedTensors, gradient: torch.Tensor, values: torch.Tensor, moments: torch.Tensor
) -> None:
    """Give every block of a panel its best step and then its best offset.

    A new one is taken where it lowers the error as the float16 that it is.

    Args:
        rows: the panel; its steps and offsets are brought up to date.
        gradient: float32[rows, columns], ``errors @ moments`` over all columns; spoiled.
        values: float32[rows, columns], the numbers on the grid; brought up to date.
        moments: float32[columns, columns] among these.
    """
    grid, levels = rows.grid, rows.levels
    for number in range(rows.steps.shape[1]):
        columns = slice(number * grid.block, (number + 1) * grid.block)
        groups = slice(columns.start // grid.group, columns.stop // grid.group)
        block = _Block(
            levels[rows.codes[:, columns].int()].reshape(len(values), -1, grid.group),
            rows.scales[:, groups, None],
            rows.minimums[:, groups, None],
            rows.steps[:, number],
            rows.offsets[:, number],
        )
        panel = _Panel(gradient[:, columns], values[:, columns], moments[columns, columns])
        block.steps.copy_(panel.fitted(block.steps, block.levels * block.scales))
        panel.change = block.values() - panel.values
        if grid.minimums is not None:
            along = -block.minimums.expand_as(block.levels)
            block.offsets.copy_(panel.fitted(block.offsets, along))
            panel.change = block.values() - panel.values
        if columns.stop < values.shape[1]:  # others follow
            gradient.addmm_(panel.change, moments[columns], alpha=-1)
        values[:, columns] = block.values()


@dataclass
class _Block:
    """One block of every row; the last dimensions are groups and columns."""

    levels: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor
    steps: torch.Tensor
    offsets: torch.Tensor

    def values(self) -> torch.Tensor:
        """The numbers as they are decoded, float32[rows, columns]."""
        found = (self.steps[:, None, None] * self.scales) * self.levels
        return found.sub_(self.offsets[:, None, None] * self.minimums).flatten(1)


@dataclass
class _Panel:
    """The columns of one block, of every row."""

    gradient: torch.Tensor
    values: torch.Tensor
    moments: torch.Tensor
    change: torch.Tensor | None = None
    """Of the values, since the gradient was taken."""

    def fitted(self, old: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The best factors float32[rows] of a direction in the place of old ones, which stay where
        nothing is gained and where they are 0."""
        along = direction.flatten(1)
        pushed = along @ self.moments
        slope, curve = (self.gradient * along).sum(1), (pushed * along).sum(1)
        if self.change is not None:
            slope -= (self.change * pushed).sum(1)
        goal = old + slope / curve.clamp(min=torch.finfo(torch.float32).tiny)
        found = torch.where(goal < 0, -round_scale(-goal), round_scale(goal))
        change = found - old
        helps = (old != 0) & (curve > 0) & (change * (change * curve - 2 * slope) < 0)
        return torch.where(helps, found, old)
