"""Weights on a grid, as tensors: what the solvers work with before they hand out GroupedRows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from zenconvert.calib.solvers.grid import LARGEST_F16
from zenconvert.calib.solvers.solution import ModuleReport, Solved, keep
from zenconvert.model.target import Scheme

if TYPE_CHECKING:
    from zenconvert.model.grouped import GroupedRows

_SLAB_ELEMENTS: Final = 1 << 25
_SLAB_COLUMNS: Final = 1024


@dataclass(frozen=True, slots=True)
class Span:
    """Columns of one group that lie side by side, in the order of solving."""

    begin: int
    end: int
    group: int


def spans_of(scheme: Scheme, order: torch.Tensor) -> list[Span]:
    """The groups as runs of columns that come in ``order``, int64[inputs].

    With ``act_order`` groups are made of columns as they come; else of neighbours in the weight,
    whose columns ``order`` must keep together.
    """
    inputs = len(order)
    group = scheme.group or inputs
    if scheme.act_order:
        return [Span(b, min(b + group, inputs), b // group) for b in range(0, inputs, group)]
    groups = order.cpu() // group
    numbers, counts = torch.unique_consecutive(groups, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [
        Span(end - count, end, number)
        for number, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True)
    ]


def groups_of(runs: list[Span], device: torch.device) -> torch.Tensor:
    """int64[inputs]: the group of every column, in the order of the runs."""
    counts = torch.tensor([run.end - run.begin for run in runs])
    numbers = torch.tensor([run.group for run in runs])
    return numbers.repeat_interleave(counts).to(device)


def spread(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """``values[:, groups]``: numbers of groups [rows, groups] for columns, [rows, columns].

    Not to be written to. On the CPU, neighbours in groups of one width are not looked up singly.
    """
    if not groups.is_cuda:
        first, last = int(groups[0]), int(groups[-1])
        count = last - first + 1
        if count > 0 and len(groups) % count == 0:
            width = len(groups) // count
            if torch.equal(groups, torch.arange(first, last + 1).repeat_interleave(width)):
                part = values[:, first : last + 1, None].expand(-1, -1, width)
                return part.reshape(len(values), len(groups))
    return values[:, groups]


@dataclass(frozen=True, eq=False)
class Rounded:
    """Quantized weights, their columns in the order of the weight."""

    codes: torch.Tensor
    """uint8[rows, inputs]."""
    scales: torch.Tensor
    """float16[rows, groups]."""
    zeros: torch.Tensor
    """uint8[rows, groups]."""
    groups: torch.Tensor
    """int64[inputs]: the group of every column."""

    @classmethod
    def of(
        cls,
        values: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        order: torch.Tensor,
        groups: torch.Tensor,
    ) -> Rounded:
        """From float32 values on the grid; columns and ``groups`` come in ``order``."""
        codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
        by_column = torch.empty_like(groups)
        by_column[order] = groups
        natural = torch.equal(order, torch.arange(len(order), device=order.device))
        for begin in range(0, len(order), _SLAB_COLUMNS):
            columns = slice(begin, begin + _SLAB_COLUMNS)
            steps = (values[:, columns] / spread(scales, groups[columns])).round_()
            steps.add_(spread(zeros, groups[columns]))
            codes[:, columns if natural else order[columns]] = steps.to(torch.uint8)
        return cls(codes, scales.half(), zeros.to(torch.uint8), by_column)

    @classmethod
    def stack(cls, parts: list[Rounded]) -> Rounded:
        """The rows of several, which share their groups."""
        codes, scales, zeros = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("codes", "scales", "zeros")
        )
        return cls(codes, scales, zeros, parts[0].groups)

    def dequantize(self) -> torch.Tensor:
        """float32[rows, inputs], exact."""
        steps = self.codes.float().sub_(spread(self.zeros.float(), self.groups))
        return steps.mul_(spread(self.scales.float(), self.groups))

    def headroom(self) -> float:
        """65504 over the largest magnitude of scales and values."""
        rows = max(1, _SLAB_ELEMENTS // self.codes.shape[1])
        largest = float(self.scales.max())
        for begin in range(0, len(self.codes), rows):
            here = slice(begin, begin + rows)
            slab = Rounded(self.codes[here], self.scales[here], self.zeros[here], self.groups)
            largest = max(largest, float(slab.dequantize().abs().max()))
        return LARGEST_F16 / largest

    def rows(self, scheme: Scheme, ordered: bool) -> GroupedRows:
        """The same on the CPU, in the neutral form; ``ordered`` when groups are no neighbours."""
        import numpy as np

        from zenconvert.model.grouped import GroupedRows

        return GroupedRows(
            bits=scheme.bits,
            codes=self.codes.cpu().numpy(),
            scales=self.scales.cpu().numpy(),
            zeros=None if scheme.symmetric else self.zeros.cpu().numpy(),
            group=scheme.group,
            group_index=self.groups.cpu().numpy().astype(np.int32) if ordered else None,
        )


def solved(
    rounded: Rounded, scheme: Scheme, report: ModuleReport, *, ordered: bool = False
) -> Solved:
    """The result of a solver; a module that float16 cannot hold is kept instead."""
    headroom = rounded.headroom()
    if headroom < 1:
        reach = f"{LARGEST_F16 / headroom:.3g}"
        return keep(
            *report.notes, f"the quantized weights reach {reach}, which float16 cannot hold"
        )
    largest = float(rounded.scales.max())
    report = replace(report, largest_scale=largest, f16_headroom=headroom)
    return Solved(rounded.rows(scheme, ordered), report)
