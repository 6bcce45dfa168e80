"""Kernels in Numba for grids whose scales are themselves quantized: a row at a time.

Rows are independent, so the threads that share them change no result. Numbers on the grid are
computed as they are decoded, in float32: ``(step · scale) · level - offset · minimum``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.calib.solvers.host_kernels import over_rows
from zenconvert.calib.solvers.host_kernels import round_half as _half
from zenconvert.model.nested import NestedGrid, NestedRows

_NONE: Final = np.float32(0.0)
_TWO: Final = np.float32(2.0)
_ONE: Final = np.float32(1.0)
_MIDDLE: Final = np.float32(0.5)


@njit(nogil=True, cache=True)
def _nearest(level, levels, even):  # type: ignore[no-untyped-def]
    """The index of the level next to a number."""
    last = levels.shape[0] - 1
    if even:
        place = np.rint(level - levels[0])
        return np.uint8(min(max(place, _NONE), np.float32(last)))
    index = 0
    while index < last and level > (levels[index] + levels[index + 1]) * _MIDDLE:
        index += 1
    return np.uint8(index)


@njit(nogil=True, cache=True)
def _settle(target, start, feedback, factors, lows, levels, even, group, codes, errors):  # type: ignore[no-untyped-def]
    rows, columns = target.shape
    settled = np.empty(columns, np.float32)
    for r in range(rows):
        for k in range(columns):
            settled[k] = target[r, k]
        for j in range(columns):
            factor, low = factors[r, j // group], lows[r, j // group]
            code = np.uint8(0)
            if factor != _NONE:
                code = _nearest((settled[j] + low) / factor, levels, even)
            codes[r, j] = code
            error = start[r, j] - (factor * levels[code] - low)
            errors[r, j] = error
            for k in range(j + 1, columns):
                settled[k] += error * feedback[j, k]


@njit(nogil=True, cache=True)
def _push(gradient, moments, column, change):  # type: ignore[no-untyped-def]
    """What a value that rises by ``change`` makes of the gradient of a row."""
    for k in range(gradient.shape[0]):
        gradient[k] -= change * moments[column, k]


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})  # sums may run in several lanes
def _along(direction, gradient, moments, begin, end):  # type: ignore[no-untyped-def]
    """``gradient · direction`` and ``directionᵀ · moments · direction`` over some columns."""
    slope, curve = _NONE, _NONE
    for i in range(begin, end):
        if direction[i] != _NONE:
            slope += gradient[i] * direction[i]
            product = _NONE
            for k in range(begin, end):
                product += moments[i, k] * direction[k]
            curve += product * direction[i]
    return slope, curve


@njit(nogil=True, cache=True)
def _helps(change, slope, curve):  # type: ignore[no-untyped-def]
    """Whether moving by ``change`` along a direction lowers the error."""
    return change * (change * curve - _TWO * slope) < _NONE


@njit(nogil=True, cache=True)
def _revalue(values, codes, gradient, moments, factor, low, levels, begin, end):  # type: ignore[no-untyped-def]
    """Give some columns their numbers on a changed grid."""
    for k in range(begin, end):
        value = factor * levels[codes[k]] - low
        if value != values[k]:
            _push(gradient, moments, k, value - values[k])
            values[k] = value


@njit(nogil=True, cache=True)
def _whole(value, low, high):  # type: ignore[no-untyped-def]
    return min(max(np.rint(value), np.float32(low)), np.float32(high))


@njit(nogil=True, cache=True)
def _refit_group(values, codes, gradient, moments, levels, step, offset, scale, minimum, limits, begin, end, direction):  # type: ignore[no-untyped-def]
    """The best scale and the best minimum of a group, all else as it is."""
    low = offset * minimum
    if limits[0] < limits[1] and step != _NONE:
        for k in range(begin, end):
            direction[k] = levels[codes[k]]
        slope, curve = _along(direction, gradient, moments, begin, end)
        if curve > _NONE:
            fitted = _whole(scale + slope / curve / step, limits[0], limits[1])
            if fitted != scale and _helps(step * fitted - step * scale, slope, curve):
                scale = fitted
                _revalue(
                    values, codes, gradient, moments, step * scale, low, levels, begin, end
                )
    if limits[2] < limits[3] and offset != _NONE:
        for k in range(begin, end):
            direction[k] = -_ONE
        slope, curve = _along(direction, gradient, moments, begin, end)
        if curve > _NONE:
            fitted = _whole(minimum + slope / curve / offset, limits[2], limits[3])
            if fitted != minimum and _helps(offset * fitted - low, slope, curve):
                minimum = fitted
                _revalue(
                    values, codes, gradient, moments, step * scale, offset * minimum, levels,
                    begin, end,
                )  # fmt: skip
    return scale, minimum


@njit(nogil=True, cache=True)
def _recode(values, codes, gradient, moments, factor, low, levels, even, begin, end):  # type: ignore[no-untyped-def]
    """Give every column of a group its best code, all others as they are."""
    for k in range(begin, end):
        goal = values[k] + gradient[k] / moments[k, k]
        code = _nearest((goal + low) / factor, levels, even)
        if code != codes[k]:
            value = factor * levels[code] - low
            change = value - values[k]
            if _helps(change, gradient[k], moments[k, k]):
                codes[k] = code
                _push(gradient, moments, k, change)
                values[k] = value


@njit(nogil=True, cache=True)
def _signed_half(value):  # type: ignore[no-untyped-def]
    return _half(value) if value >= _NONE else -_half(-value)


@njit(nogil=True, cache=True)
def _descend(moments, levels, even, group, block, limits, affine, gradient, values, codes, steps, scales, offsets, minimums):  # type: ignore[no-untyped-def]
    rows, columns = values.shape
    direction = np.zeros(columns, np.float32)
    each = block // group
    for r in range(rows):
        a, v, c = gradient[r], values[r], codes[r]
        for b in range(columns // block):
            step, offset = steps[r, b], offsets[r, b] if affine else _NONE
            for g in range(b * each, (b + 1) * each):
                begin, end = g * group, (g + 1) * group
                scale = np.float32(scales[r, g])
                minimum = np.float32(minimums[r, g]) if affine else _NONE
                scale, minimum = _refit_group(
                    v, c, a, moments, levels, step, offset, scale, minimum, limits, begin, end,
                    direction,
                )  # fmt: skip
                scales[r, g] = np.int16(scale)
                if affine:
                    minimums[r, g] = np.int16(minimum)
                if step * scale != _NONE:
                    _recode(
                        v, c, a, moments, step * scale, offset * minimum, levels, even, begin, end
                    )
            first, last = b * block, (b + 1) * block
            for k in range(first, last):
                direction[k] = np.float32(scales[r, k // group]) * levels[c[k]]
            slope, curve = _along(direction, a, moments, first, last)
            if curve > _NONE:
                fitted = _signed_half(step + slope / curve)
                if fitted != step and _helps(fitted - step, slope, curve):
                    step = fitted
            new_offset = offset
            if step != steps[r, b]:
                steps[r, b] = step
                for g in range(b * each, (b + 1) * each):
                    low = offset * np.float32(minimums[r, g]) if affine else _NONE
                    factor = step * np.float32(scales[r, g])
                    _revalue(v, c, a, moments, factor, low, levels, g * group, (g + 1) * group)
            if affine:
                for k in range(first, last):
                    direction[k] = -np.float32(minimums[r, k // group])
                slope, curve = _along(direction, a, moments, first, last)
                if curve > _NONE:
                    fitted = _signed_half(offset + slope / curve)
                    if fitted != offset and _helps(fitted - offset, slope, curve):
                        new_offset = fitted
                if new_offset != offset:
                    offsets[r, b] = new_offset
                    for g in range(b * each, (b + 1) * each):
                        low = new_offset * np.float32(minimums[r, g])
                        factor = step * np.float32(scales[r, g])
                        _revalue(v, c, a, moments, factor, low, levels, g * group, (g + 1) * group)


def settle(
    target: NDArray[np.float32],
    start: NDArray[np.float32],
    feedback: NDArray[np.float32],
    rows: NestedRows,
    errors: NDArray[np.float32],
) -> None:
    """Round the columns of a panel in turn, each error moving the targets of those that follow.

    Args:
        target: float32[rows, columns], what the columns should be before any feedback.
        start: float32[rows, columns], the weights.
        feedback: float32[columns, columns], zero on and below the diagonal.
        rows: the panel's grid; its codes are written.
        errors: float32[rows, columns] to write weights minus values to.
    """
    levels, even, group = _levels(rows.grid)
    factors, lows = rows.factors, rows.lows

    def work(part: slice) -> None:
        _settle(
            target[part], start[part], feedback, factors[part], lows[part], levels, even, group,
            rows.codes[part], errors[part],
        )  # fmt: skip

    over_rows(len(target), work)


def descend(
    gradient: NDArray[np.float32],
    moments: NDArray[np.float32],
    values: NDArray[np.float32],
    rows: NestedRows,
) -> None:
    """Lower the error of a panel by its scales, minimums, codes, steps and offsets, in that order.

    Args:
        gradient: float32[rows, columns], ``errors @ moments`` over all columns; spoiled.
        moments: float32[columns, columns] among these.
        values: float32[rows, columns], the numbers on the grid; brought up to date.
        rows: the panel; brought up to date.
    """
    levels, even, group = _levels(rows.grid)
    grid = rows.grid
    affine = rows.offsets is not None and rows.minimums is not None
    limits = np.array((*grid.scales, *(grid.minimums or (1, 1))), np.int64)
    offsets = rows.offsets if rows.offsets is not None else rows.steps
    minimums = rows.minimums if rows.minimums is not None else rows.scales

    def work(part: slice) -> None:
        _descend(
            moments, levels, even, group, grid.block, limits, affine, gradient[part], values[part],
            rows.codes[part], rows.steps[part], rows.scales[part], offsets[part], minimums[part],
        )  # fmt: skip

    over_rows(len(values), work)


def _levels(grid: NestedGrid) -> tuple[Any, ...]:
    levels = np.array(grid.levels, np.float32)
    return levels, bool((np.diff(levels) == 1).all()), grid.group
