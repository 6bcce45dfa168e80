"""Rounding to nearest, with scales (and zeros) searched by weighted squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from zenconvert.calib.solvers.exact import CPU_ROWS, exact
from zenconvert.calib.solvers.grid import LARGEST_F16, quantize, search
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rounded import Rounded, Span, groups_of, solved, spans_of
from zenconvert.calib.solvers.solution import ModuleReport, Solved, keep
from zenconvert.model.target import Scheme

if TYPE_CHECKING:
    from zenconvert.model.grouped import GroupedRows

_CHUNK_ELEMENTS: Final = 1 << 28


def rtn(
    weight: torch.Tensor,
    scheme: Scheme,
    *,
    importance: torch.Tensor | None = None,
    lowest_zero: int = 0,
) -> Solved:
    """Round a weight to the nearest values of a grid chosen for every group.

    Args:
        weight: float32[out, in], on any device.
        scheme: bits, group and kind of grid; with ``act_order`` groups are made by importance.
        importance: float32[in], mean square of every input; None counts all inputs alike.
        lowest_zero: smallest zero of an asymmetric grid.
    """
    if not bool(weight.isfinite().all()):
        return keep("the weight is not finite")
    importance, notes = _usable(importance, weight)
    rounded, sums = _rounded(weight, scheme, importance, lowest_zero, measured=True)
    error, energy = sums.tolist()
    share = error / energy if energy else 0.0
    report = ModuleReport("rtn", share, share, notes=tuple(notes))
    return solved(rounded, scheme, report, ordered=scheme.act_order)


def nearest(
    weight: torch.Tensor, scheme: Scheme, *, importance: torch.Tensor | None = None
) -> GroupedRows | None:
    """:func:`rtn` without its report, for one of several workers; None for what it would keep."""
    importance, _ = _usable(importance, weight)
    if weight.device.type == "cpu" and not scheme.act_order:
        rounded = _rounded_on_host(weight, scheme, importance)
    else:
        finite = bool(weight.isfinite().all())
        rounded = _rounded(weight, scheme, importance, 0, measured=False)[0] if finite else None
    if rounded is None:
        return None
    # no value is larger than all levels of the largest scale
    if float(rounded.scales.max()) * scheme.levels > LARGEST_F16 and rounded.headroom() < 1:
        return None
    return rounded.rows(scheme, scheme.act_order)


def _rounded(
    weight: torch.Tensor,
    scheme: Scheme,
    importance: torch.Tensor,
    lowest_zero: int,
    *,
    measured: bool,
) -> tuple[Rounded, torch.Tensor]:
    """The weight on its grid; weighted squares float64[2] of errors and weights, if measured."""
    order = torch.arange(weight.shape[1], device=weight.device)
    if scheme.act_order:
        order = importance.argsort(descending=True, stable=True)
    runs, levels = spans_of(scheme, order), Levels.of(scheme, lowest_zero)
    groups, weighting = groups_of(runs, order.device), importance[order].double()

    def solve(rows: torch.Tensor) -> tuple[Rounded, torch.Tensor]:
        ordered = rows.float()[:, order] if scheme.act_order else rows.float()
        scales, zeros = search_runs(ordered, importance[order], runs, levels)
        values = round_runs(ordered, scales, zeros, runs, levels)
        squares = [
            part.square().double().sum(0) @ weighting
            for part in ((ordered - values, ordered) if measured else ())
        ]
        sums = torch.stack(squares) if measured else weighting.new_zeros(2)
        return Rounded.of(values, scales, zeros, order, groups), sums

    count = CPU_ROWS if weight.device.type == "cpu" else _CHUNK_ELEMENTS // weight.shape[1]
    with exact(weight.device, alone=measured) as run:
        parts = run(solve, torch.split(weight, max(1, count)))
    return Rounded.stack([part[0] for part in parts]), torch.stack([p[1] for p in parts]).sum(0)


def _rounded_on_host(
    weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor
) -> Rounded | None:
    """:func:`_rounded` in one pass over the numbers; None for a weight that is not finite."""
    from zenconvert.calib.solvers.host_kernels import round_rows

    inputs = weight.shape[1]
    group = scheme.group or inputs
    found = round_rows(weight, importance, group, Levels.of(scheme))
    if found is None:
        return None
    codes, scales, zeros = found
    groups = torch.arange(inputs) // group
    return Rounded(codes, scales.half(), zeros.to(torch.uint8), groups)


def _usable(
    importance: torch.Tensor | None, weight: torch.Tensor
) -> tuple[torch.Tensor, list[str]]:
    """Importance float32[in] of mean 1, and what had to be done for it."""
    if importance is None:
        return torch.ones(weight.shape[1], device=weight.device), []
    notes = []
    usable = importance.isfinite() & (importance >= 0)
    if not bool(usable.all()):
        notes.append("unusable importance is taken as the largest")
        largest = torch.where(usable, importance, 0).max()
        importance = torch.where(usable, importance, largest)
    if not bool((importance > 0).any()):
        notes.append("no importance above 0: all inputs count alike")
        return torch.ones(weight.shape[1], device=weight.device), notes
    return (importance.double() / importance.double().mean()).float(), notes


def search_runs(
    weight: torch.Tensor, importance: torch.Tensor, runs: list[Span], levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros float32[rows, groups] of every run of columns.

    ``weight`` float32[rows, inputs] and ``importance`` float32[inputs] come in the runs' order.
    """
    scales, zeros = (torch.empty(len(weight), len(runs), device=weight.device) for _ in range(2))
    width, alike = runs[0].end, 0
    if not weight.is_cuda:  # small groups are many calls: those of one width at once
        while alike < len(runs) and runs[alike].end == (alike + 1) * width:
            alike += 1
        groups = weight[:, : alike * width].reshape(len(weight), alike, width).transpose(0, 1)
        found = search(groups, importance[: alike * width].reshape(alike, width), levels)
        numbers = [run.group for run in runs[:alike]]
        scales[:, numbers], zeros[:, numbers] = (part.T for part in found)
    for run in runs[alike:]:
        columns = slice(run.begin, run.end)
        found = search(weight[:, columns], importance[columns], levels)
        scales[:, run.group], zeros[:, run.group] = found
    return scales, zeros


def round_runs(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    runs: list[Span],
    levels: Levels,
) -> torch.Tensor:
    """Every column to the nearest value of its run's grid, float32[rows, inputs]."""
    values = torch.empty_like(weight)
    for run in runs:
        columns, grid = slice(run.begin, run.end), slice(run.group, run.group + 1)
        values[:, columns] = quantize(
            weight[:, columns], scales[:, grid], zeros[:, grid], levels.top
        )
    return values
