"""The work of GPTQ on some rows of a weight: one pass over the columns, then coordinate descent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch

from zenconvert.calib.solvers.curvature import Curvature
from zenconvert.calib.solvers.grid import quantize, round_scale, search
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rounded import Rounded, Span, groups_of, spans_of
from zenconvert.calib.solvers.rtn import round_runs, search_runs
from zenconvert.calib.solvers.sweep import PANEL, sweep, trials
from zenconvert.model.target import Scheme

TRIED_SCALES: Final = (1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1)
"""Of a searched scale; a whole sweep of the group decides."""
_BLOCK: Final = 1024  # columns whose targets one matrix product updates
_ANY_GROUP: Final = -1  # of a run whose columns belong to groups fixed before


@dataclass(eq=False)
class GptqRows:
    """Rows on their way. Columns come in the order of the curvature."""

    weight: torch.Tensor
    """float32[rows, inputs]."""
    errors: torch.Tensor
    """Weight minus values, so far."""
    scales: torch.Tensor
    """float32[rows, groups], float16 numbers."""
    zeros: torch.Tensor
    """float32[rows, groups]."""
    runs: list[Span]
    groups: torch.Tensor
    """int64[inputs]: the group of every column."""
    curvature: Curvature
    levels: Levels

    @classmethod
    def searched(
        cls, weight: torch.Tensor, scheme: Scheme, curvature: Curvature, levels: Levels
    ) -> GptqRows:
        """Grids are searched as their columns come up, and fitted again in every descent."""
        weight = weight[:, curvature.order]
        runs = spans_of(scheme, curvature.order)
        scales = torch.ones(len(weight), len(runs), device=weight.device)
        groups = groups_of(runs, weight.device)
        errors, zeros = torch.zeros_like(weight), torch.zeros_like(scales)
        return cls(weight, errors, scales, zeros, runs, groups, curvature, levels)

    @classmethod
    def fixed(
        cls, weight: torch.Tensor, scheme: Scheme, curvature: Curvature, levels: Levels
    ) -> GptqRows:
        """Grids are searched now, on the weights as they are."""
        order = curvature.order
        natural = torch.arange(len(order), device=order.device)
        runs = spans_of(replace(scheme, act_order=False), natural)
        pivots = torch.empty_like(curvature.pivots)
        pivots[order] = curvature.pivots
        scales, zeros = search_runs(weight, pivots, runs, levels)
        groups = groups_of(runs, weight.device)[order]
        panels = [
            Span(begin, min(begin + PANEL, len(order)), _ANY_GROUP)
            for begin in range(0, len(order), PANEL)
        ]
        weight = weight[:, order]
        errors = torch.zeros_like(weight)
        return cls(weight, errors, scales, zeros, panels, groups, curvature, levels)

    def round_columns(self) -> None:
        """GPTQ itself; errors of earlier blocks reach a block through one matrix product."""
        feedback = self.curvature.matrix
        for begin, end, runs in self._blocks():
            target = self.weight[:, begin:end].addmm(
                self.errors[:, :begin], feedback[:begin, begin:end]
            )
            for run in runs:
                if run.group != _ANY_GROUP:
                    self._find_grid(run, target[:, run.begin - begin : run.end - begin])
                for first, last in _panels(run):
                    values = sweep(
                        target[:, first - begin : last - begin],
                        self.weight[:, first:last],
                        feedback[first:last, first:last].triu(1),
                        *self._grid(run, first, last),
                        self.levels.top,
                    )
                    errors = self.weight[:, first:last] - values
                    self.errors[:, first:last] = errors
                    target[:, last - begin :].addmm_(errors, feedback[first:last, last:end])

    def descend(self) -> None:
        """Give every scale and then every code its best value, all others as they are."""
        damped = self.curvature.damped
        for begin, end, runs in self._blocks():
            gradient = self.curvature.gradient(self.errors, begin, end)
            moments = self.curvature.block(begin, end)
            for run in runs:
                if run.group != _ANY_GROUP:
                    self._refit(run, gradient[:, run.begin - begin :], moments[run.begin - begin :])
                for first, last in _panels(run):
                    here = slice(first - begin, last - begin)
                    curvature = damped[first:last]
                    current = self.weight[:, first:last] - self.errors[:, first:last]
                    values = sweep(
                        current + gradient[:, here] / curvature,
                        current,
                        moments[here, here].triu(1) / curvature,
                        *self._grid(run, first, last),
                        self.levels.top,
                    )
                    moved = current - values
                    self.errors[:, first:last] += moved
                    gradient.addmm_(moved, moments[here])

    def finish(self) -> tuple[Rounded, torch.Tensor, int]:
        """Take rounding to nearest where that is better.

        Returns the result, its columns in the order of the weight; weighted errors float64[3] (of
        these rows, of rounding to nearest, of zeros); and how many rows were replaced.
        """
        scales, zeros = self.scales, self.zeros
        if self.runs[0].group == _ANY_GROUP:
            errors = torch.empty_like(self.weight)
            for run in self.runs:
                columns = slice(run.begin, run.end)
                grid = self._grid(run, run.begin, run.end)
                nearest = quantize(self.weight[:, columns], *grid, self.levels.top)
                errors[:, columns] = self.weight[:, columns] - nearest
        else:
            parts = (self.runs, self.levels)
            scales, zeros = search_runs(self.weight, self.curvature.diagonal, *parts)
            errors = self.weight - round_runs(self.weight, scales, zeros, *parts)
        ours = self.curvature.quadratic(self.errors)
        nearest = self.curvature.quadratic(errors)
        worse = nearest < ours
        for mine, other in ((self.errors, errors), (self.scales, scales), (self.zeros, zeros)):
            mine[worse] = other[worse]
        sums = (torch.minimum(ours, nearest), nearest, self.curvature.quadratic(self.weight))
        values = self.weight - self.errors
        rounded = Rounded.of(values, self.scales, self.zeros, self.curvature.order, self.groups)
        return rounded, torch.stack([part.sum() for part in sums]).cpu(), int(worse.sum())

    def _blocks(self) -> Iterator[tuple[int, int, list[Span]]]:
        """Neighbouring runs, together about as wide as one matrix product should be."""
        block: list[Span] = []
        for run in self.runs:
            if block and run.end - block[0].begin > _BLOCK:
                yield block[0].begin, block[-1].end, block
                block = []
            block.append(run)
        yield block[0].begin, block[-1].end, block

    def _grid(self, run: Span, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero of a panel, float32[rows, 1] or [rows, columns]."""
        if run.group != _ANY_GROUP:
            group = slice(run.group, run.group + 1)
            return self.scales[:, group], self.zeros[:, group]
        if self.scales.shape[1] == 1:
            return self.scales, self.zeros
        groups = self.groups[first:last]
        return self.scales[:, groups], self.zeros[:, groups]

    def _find_grid(self, run: Span, target: torch.Tensor) -> None:
        """Search the grid of a run for what its columns should be by now."""
        columns = slice(run.begin, run.end)
        pivots = self.curvature.pivots[columns]
        scale, zero = search(target, pivots, self.levels)
        if run.end - run.begin <= PANEL:
            tried = torch.stack([round_scale(scale * factor) for factor in TRIED_SCALES])
            back = self.curvature.matrix[columns, columns].triu(1)
            start = self.weight[:, columns]
            costs = trials(target, start, back, pivots, tried, zero, self.levels.top)
            scale = tried.gather(0, costs.argmin(0, keepdim=True))[0]
        self.scales[:, run.group], self.zeros[:, run.group] = scale, zero

    def _refit(self, run: Span, gradient: torch.Tensor, moments: torch.Tensor) -> None:
        """The best float16 scale of a run, its codes as they are.

        ``gradient`` float32[rows, n] and ``moments`` float32[n, block] begin with the run's first
        column and end with the block; the gradient is brought up to date.
        """
        columns, width = slice(run.begin, run.end), run.end - run.begin
        scale = self.scales[:, run.group, None]
        steps = (self.weight[:, columns] - self.errors[:, columns]) / scale
        size = moments.shape[1]
        pushed = steps @ moments[:width, size - gradient.shape[1] :]
        gain = (gradient[:, :width] * steps).sum(1, keepdim=True)
        curve = (pushed[:, :width] * steps).sum(1, keepdim=True)
        fitted = round_scale(scale + gain / curve.clamp(min=torch.finfo(curve.dtype).tiny))
        change = fitted - scale
        change = torch.where(change * (change * curve - 2 * gain) < 0, change, 0)
        self.scales[:, run.group] += change[:, 0]
        self.errors[:, columns] -= change * steps
        gradient.addcmul_(change, pushed, value=-1)


def _panels(run: Span) -> Iterator[tuple[int, int]]:
    """The run in pieces that can be swept."""
    for begin in range(run.begin, run.end, PANEL):
        yield begin, min(begin + PANEL, run.end)
