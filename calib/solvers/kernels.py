"""CUDA kernels in Triton for the modules ``grid`` and ``sweep`` of this room.

Each does for a few rows, in registers, what the plain torch code does in hundreds of launches; the
results agree to rounding. Imported only where Triton is installed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch
import triton
import triton.language as tl

from zenconvert.calib.solvers.grid import LARGEST_F16, SMALLEST_SCALE
from zenconvert.calib.solvers.levels import REFITS, Levels

LONGEST_GROUP: Final = 1024
"""Widest group that fits into registers."""
_TILE: Final = 512  # elements of each operand that a program holds, in one warp: no barriers
_WARPS: Final = 1


@triton.jit
def _nearest(target, inverse, scale, zero, top):  # type: ignore[no-untyped-def]
    """Rounds half to even by the addition of 1.5 * 2**23, as torch does."""
    steps = tl.minimum(tl.maximum(target * inverse, -1024.0), 1024.0)
    steps = (steps + 12582912.0) - 12582912.0
    steps = tl.minimum(tl.maximum(steps + zero, 0.0), top)
    return (steps - zero) * scale


@triton.jit
def _error(target, importance, scale, zero, top):  # type: ignore[no-untyped-def]
    gap = target - _nearest(target, (1.0 / scale)[:, None], scale[:, None], zero[:, None], top)
    return tl.sum(gap * gap * importance[None, :], axis=1)


@triton.jit
def _round_scale(scale, smallest, largest):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(scale, smallest), largest).to(tl.float16).to(tl.float32)


@triton.jit
def _search_kernel(  # type: ignore[no-untyped-def]
    target_at, importance_at, shrinks_at, scale_at, zero_at,
    rows, columns, row_stride, top, midpoint, lowest_zero, smallest, largest,
    SHRINKS: tl.constexpr, REFITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    offsets = row[:, None].to(tl.int64) * row_stride + column[None, :]
    target = tl.load(target_at + offsets, mask=inside, other=0.0)
    importance = tl.load(importance_at + column, mask=column < columns, other=0.0)
    high = tl.maximum(tl.max(target, axis=1), 0.0)
    low = tl.minimum(tl.min(target, axis=1), 0.0)
    if SYMMETRIC:
        full = tl.maximum(high, -low) * (2.0 / top)
        centre = tl.zeros_like(full) + midpoint
    else:
        full = (high - low) / top
        centre = tl.minimum(-low / tl.maximum(full, smallest), 1024.0)
        centre = (centre + 12582912.0) - 12582912.0
    scale = _round_scale(full, smallest, largest)
    zero = tl.minimum(tl.maximum(centre, lowest_zero), top)
    error = _error(target, importance, scale, zero, top)
    for i in range(SHRINKS):
        tried = _round_scale(full * tl.load(shrinks_at + i), smallest, largest)
        for shift in range(0 if SYMMETRIC else -1, 1 if SYMMETRIC else 2):
            moved = tl.minimum(tl.maximum(centre + shift, lowest_zero), top)
            found = _error(target, importance, tried, moved, top)
            better = found < error
            error = tl.where(better, found, error)
            scale = tl.where(better, tried, scale)
            zero = tl.where(better, moved, zero)
    for _ in range(REFITS):
        value = _nearest(target, (1.0 / scale)[:, None], scale[:, None], zero[:, None], top)
        steps = value / scale[:, None]
        product = tl.sum(steps * target * importance[None, :], axis=1)
        square = tl.sum(steps * steps * importance[None, :], axis=1)
        tried = _round_scale(
            product / tl.maximum(square, 1.1754943508222875e-38), smallest, largest
        )
        found = _error(target, importance, tried, zero, top)
        better = found < error
        error = tl.where(better, found, error)
        scale = tl.where(better, tried, scale)
    tl.store(scale_at + row, scale, mask=row < rows)
    tl.store(zero_at + row, zero, mask=row < rows)


@triton.jit
def _sweep_kernel(  # type: ignore[no-untyped-def]
    target_at, start_at, feedback_at, weight_at, scale_at, zero_at, out_at,
    rows, columns, target_row, start_row, feedback_row,
    scale_trial, scale_row, zero_row, top,
    TRIALS: tl.constexpr, ONE_GRID: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    trial = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    across, down = column[None, :], row[:, None]
    inside = (down < rows) & (across < columns)
    target = tl.load(target_at + down * target_row + across, mask=inside, other=0.0)
    start = tl.load(start_at + down * start_row + across, mask=inside, other=0.0)
    scale_at += trial * scale_trial
    if ONE_GRID:  # of the whole row, else one of every column
        scale = tl.load(scale_at + row * scale_row, mask=row < rows, other=1.0)[:, None]
        zero = tl.load(zero_at + row * zero_row, mask=row < rows, other=0.0)[:, None]
    else:
        scale = tl.load(scale_at + down * scale_row + across, mask=inside, other=1.0)
        zero = tl.load(zero_at + down * zero_row + across, mask=inside, other=0.0)
    inverse = 1.0 / scale
    for j in range(columns):
        # a column's value is final once its turn comes, for feedback only moves those behind it
        gap = start - _nearest(target, inverse, scale, zero, top)
        moved = tl.sum(tl.where(across == j, gap, 0.0), axis=1)
        step = tl.load(feedback_at + j * feedback_row + column, mask=column < columns, other=0.0)
        target += moved[:, None] * step[None, :]
    value = _nearest(target, inverse, scale, zero, top)
    if TRIALS:
        weight = tl.load(weight_at + column, mask=column < columns, other=0.0)
        gap = target - value
        cost = tl.sum(gap * gap * weight[None, :], axis=1)
        tl.store(out_at + trial * rows + row, cost, mask=row < rows)
    else:
        tl.store(out_at + down * columns + across, value, mask=inside)


def search_rows(
    target: torch.Tensor, importance: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`zenconvert.calib.solvers.grid.search` of groups up to :data:`LONGEST_GROUP`."""
    rows, columns = target.shape
    target = _in_rows(target)
    shrinks = _shrinks(levels, target.device)
    scale, zero = (torch.empty(rows, device=target.device) for _ in range(2))
    tile = _tile(columns)
    _search_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        target, importance.contiguous(), shrinks, scale, zero,
        rows, columns, target.stride(0),
        float(levels.top), float(levels.midpoint), float(levels.lowest_zero),
        SMALLEST_SCALE, LARGEST_F16,
        SHRINKS=len(shrinks), REFITS=REFITS, SYMMETRIC=levels.symmetric, **tile,
    )  # fmt: skip
    return scale, zero


def sweep_rows(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> torch.Tensor:
    """:func:`zenconvert.calib.solvers.sweep.sweep`."""
    values = torch.empty(target.shape, device=target.device)
    _launch(target, start, feedback, None, scale[None], zero, top, values)
    return values


def trial_rows(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> torch.Tensor:
    """:func:`zenconvert.calib.solvers.sweep.trials`."""
    costs = torch.empty(scales.shape, device=target.device)
    tried = scales[:, :, None]
    _launch(target, start, feedback, weight.contiguous(), tried, zero[:, None], top, costs)
    return costs


def _launch(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    weight: torch.Tensor | None,
    scales: torch.Tensor,
    zero: torch.Tensor,
    top: int,
    out: torch.Tensor,
) -> None:
    rows, columns = target.shape
    target, start, feedback = _in_rows(target), _in_rows(start), _in_rows(feedback)
    one_grid = scales.shape[2] == 1 < columns
    scales, zero = scales.contiguous(), zero.contiguous()
    tile = _tile(columns)
    _sweep_kernel[(triton.cdiv(rows, tile["ROWS"]), len(scales))](
        target, start, feedback, out if weight is None else weight, scales, zero, out,
        rows, columns, target.stride(0), start.stride(0), feedback.stride(0),
        scales.stride(0), scales.stride(1), zero.stride(0), float(top),
        TRIALS=weight is not None, ONE_GRID=one_grid, **tile,
    )  # fmt: skip


@cache
def _shrinks(levels: Levels, device: torch.device) -> torch.Tensor:
    return torch.tensor(levels.shrinks(), dtype=torch.float32, device=device)


def _in_rows(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with neighbouring columns side by side."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _tile(columns: int) -> dict[str, Any]:
    """Launch parameters for rows of a panel or group."""
    width = max(16, triton.next_power_of_2(columns))
    return {"ROWS": max(1, _TILE // width), "COLUMNS": width, "num_warps": _WARPS}
