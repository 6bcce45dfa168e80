"""CUDA kernels in Triton that do what ``nested_kernels`` does on the host, rows by the thousand.

:func:`settle` gives the codes of the host where it is given the same targets; in :func:`descend`,
sums differ by rounding. Numbers are computed as they are decoded, without contraction. Imported
only where Triton is installed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
import triton
import triton.language as tl

from zenconvert.calib.solvers.nested_tensors import NestedTensors
from zenconvert.ggml.devices.searches import LAUNCHING

_TILE: Final = 512  # elements of each operand that a program holds, in one warp: no barriers
_GROUP_ROWS: Final = 32
_HOW: Final = {"num_warps": 1, "enable_fp_fusion": False}


@triton.jit
def _nearest(level, levels_at, first, EVEN: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The index of the level next to a number; half to even by the addition of 1.5 * 2**23."""
    if EVEN:
        place = tl.minimum(tl.maximum(level - first, 0.0), COUNT - 1.0)
        return ((place + 12582912.0) - 12582912.0).to(tl.int32)
    index = tl.zeros_like(level).to(tl.int32)
    for place in tl.static_range(COUNT - 1):
        below, above = tl.load(levels_at + place), tl.load(levels_at + place + 1)
        index += (level > (below + above) * 0.5).to(tl.int32)
    return index


@triton.jit
def _level(code, levels_at, first, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    if EVEN:
        return code.to(tl.float32) + first
    return tl.load(levels_at + code)


@triton.jit
def _code(value, factor, low, levels_at, first, EVEN: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The code next to a value; 0 where all codes say the same."""
    level = tl.div_rn(value + low, tl.where(factor == 0.0, 1.0, factor))
    code = _nearest(level, levels_at, first, EVEN, COUNT)
    return tl.where(factor == 0.0, 0, code)


@triton.jit
def _settle_kernel(  # type: ignore[no-untyped-def]
    target_at, start_at, feedback_at, factors_at, lows_at, levels_at, codes_at, errors_at,
    rows, columns, start_row, errors_row, groups, first,
    GROUP: tl.constexpr, EVEN: tl.constexpr, COUNT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    across, down, here = column[None, :], row[:, None], row < rows
    inside = here[:, None] & (across < columns)
    target = tl.load(target_at + down * columns + across, mask=inside, other=0.0)
    codes = tl.zeros([ROWS, COLUMNS], tl.int32)
    errors = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(columns):
        settled = tl.sum(tl.where(across == j, target, 0.0), axis=1)
        start = tl.load(start_at + row * start_row + j, mask=here, other=0.0)
        factor = tl.load(factors_at + row * groups + j // GROUP, mask=here, other=0.0)
        low = tl.load(lows_at + row * groups + j // GROUP, mask=here, other=0.0)
        code = _code(settled, factor, low, levels_at, first, EVEN, COUNT)
        error = start - (factor * _level(code, levels_at, first, EVEN) - low)
        codes = tl.where(across == j, code[:, None], codes)
        errors = tl.where(across == j, error[:, None], errors)
        step = tl.load(feedback_at + j * columns + column, mask=column < columns, other=0.0)
        target += error[:, None] * step[None, :]
    tl.store(codes_at + down * columns + across, codes.to(tl.uint8), mask=inside)
    tl.store(errors_at + down * errors_row + across, errors, mask=inside)


@triton.jit
def _along(gradient, direction, moments_at, moments_row, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The slope of the error along directions, and twice its curve."""
    place = tl.arange(0, GROUP)
    pushed = tl.zeros_like(direction)
    for k in range(GROUP):
        part = tl.sum(tl.where(place[None, :] == k, direction, 0.0), axis=1)
        pushed += part[:, None] * tl.load(moments_at + k * moments_row + place)[None, :]
    return tl.sum(gradient * direction, axis=1), tl.sum(pushed * direction, axis=1)


@triton.jit
def _helps(change, slope, curve):  # type: ignore[no-untyped-def]
    return change * (change * curve - 2.0 * slope) < 0.0


@triton.jit
def _fitted(place, unit, slope, curve, low, high):  # type: ignore[no-untyped-def]
    """The best whole number in the place of another, which moves values by ``unit`` each; the
    old one where nothing is gained."""
    usable = (curve > 0.0) & (unit != 0.0)
    moved = tl.div_rn(tl.div_rn(slope, tl.where(usable, curve, 1.0)), tl.where(usable, unit, 1.0))
    found = tl.minimum(tl.maximum(place + moved, low), high)
    found = (found + 12582912.0) - 12582912.0
    better = usable & _helps((found - place) * unit, slope, curve)
    return tl.where(better, found, place)


@triton.jit
def _moved(gradient, change, moments_at, moments_row, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient after changes of values."""
    place = tl.arange(0, GROUP)
    for k in range(GROUP):
        part = tl.sum(tl.where(place[None, :] == k, change, 0.0), axis=1)
        gradient -= part[:, None] * tl.load(moments_at + k * moments_row + place)[None, :]
    return gradient


@triton.jit(do_not_specialize=["number"])
def _group_kernel(  # type: ignore[no-untyped-def]
    gradient_at, values_at, codes_at, scales_at, minimums_at, steps_at, offsets_at,
    moments_at, levels_at, change_at,
    number, rows, columns, groups, blocks, moments_row, first,
    lowest_scale, highest_scale, lowest_minimum, highest_minimum,
    SCALES: tl.constexpr, MINIMUMS: tl.constexpr, EVEN: tl.constexpr, COUNT: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    place = tl.arange(0, GROUP)
    across, here, begin = place[None, :], row < rows, number * GROUP
    inside = here[:, None] & (across < GROUP)
    at = row[:, None] * columns + begin + across
    moments_at += begin * moments_row + begin
    scales_at, minimums_at = scales_at + row * groups + number, minimums_at + row * groups + number
    of_block = row * blocks + begin // BLOCK
    gradient = tl.load(gradient_at + at, mask=inside, other=0.0)
    before = tl.load(values_at + at, mask=inside, other=0.0)
    codes = tl.load(codes_at + at, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales_at, mask=here, other=0.0)
    minimum = tl.load(minimums_at, mask=here, other=0.0)
    step = tl.load(steps_at + of_block, mask=here, other=0.0)
    offset = tl.load(offsets_at + of_block, mask=here, other=0.0)
    values = before
    level = _level(codes, levels_at, first, EVEN)
    if SCALES:
        slope, curve = _along(gradient, level, moments_at, moments_row, GROUP)
        found = _fitted(scale, step, slope, curve, lowest_scale, highest_scale)
        revalued = (step * found)[:, None] * level - (offset * minimum)[:, None]
        revalued = tl.where((found != scale)[:, None], revalued, values)
        gradient = _moved(gradient, revalued - values, moments_at, moments_row, GROUP)
        values, scale = revalued, found
        tl.store(scales_at, scale, mask=here)
    if MINIMUMS:
        down = tl.zeros_like(level) - 1.0
        slope, curve = _along(gradient, down, moments_at, moments_row, GROUP)
        found = _fitted(minimum, offset, slope, curve, lowest_minimum, highest_minimum)
        revalued = (step * scale)[:, None] * level - (offset * found)[:, None]
        revalued = tl.where((found != minimum)[:, None], revalued, values)
        gradient = _moved(gradient, revalued - values, moments_at, moments_row, GROUP)
        values, minimum = revalued, found
        tl.store(minimums_at, minimum, mask=here)
    factor, low = step * scale, offset * minimum
    for k in range(GROUP):
        old = tl.sum(tl.where(across == k, values, 0.0), axis=1)
        pull = tl.sum(tl.where(across == k, gradient, 0.0), axis=1)
        was = tl.sum(tl.where(across == k, codes, 0), axis=1)
        moment = tl.load(moments_at + k * moments_row + k)
        goal = old + tl.div_rn(pull, tl.zeros_like(pull) + moment)
        code = _code(goal, factor, low, levels_at, first, EVEN, COUNT)
        value = factor * _level(code, levels_at, first, EVEN) - low
        better = (factor != 0.0) & (code != was) & _helps(value - old, pull, moment)
        change = tl.where(better, value - old, 0.0)
        taken = better[:, None] & (across == k)
        codes = tl.where(taken, code[:, None], codes)
        values = tl.where(taken, value[:, None], values)
        moves = tl.load(moments_at + k * moments_row + place)
        gradient -= change[:, None] * moves[None, :]
    tl.store(codes_at + at, codes.to(tl.uint8), mask=inside)
    tl.store(values_at + at, values, mask=inside)
    tl.store(change_at + row[:, None] * GROUP + across, values - before, mask=inside)


def settle(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    rows: NestedTensors,
    errors: torch.Tensor,
) -> None:
    """:func:`zenconvert.calib.solvers.nested_kernels.settle` on a device."""
    count, columns = target.shape
    width = max(16, triton.next_power_of_2(columns))
    tile = max(1, _TILE // width)
    factors, lows = rows.factors.contiguous(), rows.lows.contiguous()
    target, feedback = target.contiguous(), feedback.contiguous()
    shape = (count, columns, start.stride(0), errors.stride(0), factors.shape[1])
    operands = (target, start, feedback, factors, lows, rows.levels, rows.codes, errors)
    with LAUNCHING:
        _settle_kernel[(triton.cdiv(count, tile),)](
            *operands, *shape, float(rows.grid.levels[0]), GROUP=rows.grid.group,
            **_levels(rows), ROWS=tile, COLUMNS=width, **_HOW,
        )  # fmt: skip


def descend(
    gradient: torch.Tensor, moments: torch.Tensor, values: torch.Tensor, rows: NestedTensors
) -> None:
    """:func:`zenconvert.calib.solvers.nested_kernels.descend` on a device."""
    grid, (count, columns) = rows.grid, values.shape
    groups, blocks = columns // grid.group, columns // grid.block
    change, levels = values.new_empty(count, grid.group), rows.levels
    lowest, highest = grid.minimums or (0, 0)
    limits = (*map(float, grid.scales), float(lowest), float(highest))
    kinds = {"SCALES": grid.scales[0] < grid.scales[1], "MINIMUMS": lowest < highest}
    operands = (gradient, values, rows.codes, rows.scales, rows.minimums, rows.steps, rows.offsets)
    sizes = (count, columns, groups, blocks, moments.stride(0))
    for number in range(groups):
        with LAUNCHING:
            _group_kernel[(triton.cdiv(count, _GROUP_ROWS),)](
                *operands, moments, levels, change,
                number, *sizes, float(grid.levels[0]), *limits, **kinds, **_levels(rows),
                ROWS=_GROUP_ROWS, GROUP=grid.group, BLOCK=grid.block, **_HOW,
            )  # fmt: skip
        begin = number * grid.group
        gradient.addmm_(change, moments[begin : begin + grid.group], alpha=-1)


def _levels(rows: NestedTensors) -> dict[str, Any]:
    """Whether the levels are whole numbers in a row, and how many there are."""
    levels = rows.grid.levels
    even = all(b - a == 1 for a, b in pairwise(levels))
    return {"EVEN": even, "COUNT": len(levels)}
