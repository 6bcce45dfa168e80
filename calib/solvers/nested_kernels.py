"""Kernels in Numba for grids whose scales are themselves quantized: a row at a time.

They let other threads run meanwhile. Numbers on the grid are
computed as they are decoded, in float32: ``(step · scale) · level - offset · minimum``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.model.nested import NestedGrid, NestedRows

OverRows = Callable[[int, Callable[[slice], None]], None]
"""Calls a function on slices of so many rows, all of them together."""
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
def _settle(target, start, feedback, factors, lows, shared, codes, errors):  # type: ignore[no-untyped-def]
    levels, even, group = shared
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
            behind, moves = settled[j + 1 :], feedback[j, j + 1 :]
            for k in range(behind.shape[0]):
                behind[k] += error * moves[k]


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})  # sums may run in several lanes
def _along(direction, line, shared, begin, end):  # type: ignore[no-untyped-def]
    """The slope of the error along a direction, and twice its curve, over some columns."""
    _, _, gradient = line
    moments = shared[0]
    slope, curve = _NONE, _NONE
    for i in range(begin, end):
        if direction[i] != _NONE:
            slope += gradient[i] * direction[i]
            product, row, along = _NONE, moments[i, begin:end], direction[begin:end]
            for k in range(along.shape[0]):
                product += row[k] * along[k]
            curve += product * direction[i]
    return slope, curve


@njit(nogil=True, cache=True)
def _helps(change, slope, curve):  # type: ignore[no-untyped-def]
    """Whether moving by ``change`` along a direction lowers the error."""
    return change * (change * curve - _TWO * slope) < _NONE


@njit(nogil=True, cache=True)
def _put(row, shared, k, value):  # type: ignore[no-untyped-def]
    """Change the value of a column, and the gradient with it."""
    values, _, gradient = row
    moves, change = shared[0][k], value - values[k]
    values[k] = value
    for i in range(gradient.shape[0]):
        gradient[i] -= change * moves[i]


@njit(nogil=True, cache=True)
def _revalue(row, shared, fields, g):  # type: ignore[no-untyped-def]
    """Give the columns of a group their values on a grid that has changed."""
    values, codes, _ = row
    _, levels, _, group, block, _ = shared
    steps, scales, offsets, minimums = fields
    b = g * group // block
    factor, low = steps[b] * scales[g], offsets[b] * minimums[g]
    for k in range(g * group, (g + 1) * group):
        value = factor * levels[codes[k]] - low
        if value != values[k]:
            _put(row, shared, k, value)


@njit(nogil=True, cache=True)
def _fitted(place, unit, slope, curve, low, high):  # type: ignore[no-untyped-def]
    """The best whole number in the place of another, which moves values by ``unit`` each; the
    old one where nothing is gained."""
    if not curve > _NONE:
        return place
    found = min(max(np.rint(place + slope / curve / unit), low), high)
    return found if _helps((found - place) * unit, slope, curve) else place


@njit(nogil=True, cache=True)
def _refit_group(row, shared, fields, g, direction):  # type: ignore[no-untyped-def]
    """The best scale of a group, then its best minimum, all else as it is."""
    _, codes, _ = row
    _, levels, _, group, block, limits = shared
    steps, scales, offsets, minimums = fields
    b, begin, end = g * group // block, g * group, (g + 1) * group
    if limits[0] < limits[1] and steps[b] != _NONE:
        for k in range(begin, end):
            direction[k] = levels[codes[k]]
        slope, curve = _along(direction, row, shared, begin, end)
        scale = _fitted(scales[g], steps[b], slope, curve, limits[0], limits[1])
        if scale != scales[g]:
            scales[g] = scale
            _revalue(row, shared, fields, g)
    if limits[2] < limits[3] and offsets[b] != _NONE:
        direction[begin:end] = -_ONE
        slope, curve = _along(direction, row, shared, begin, end)
        minimum = _fitted(minimums[g], offsets[b], slope, curve, limits[2], limits[3])
        if minimum != minimums[g]:
            minimums[g] = minimum
            _revalue(row, shared, fields, g)


@njit(nogil=True, cache=True)
def _recode(row, shared, fields, g):  # type: ignore[no-untyped-def]
    """Give every column of a group its best code, all others as they are."""
    values, codes, gradient = row
    moments, levels, even, group, block, _ = shared
    steps, scales, offsets, minimums = fields
    b = g * group // block
    factor, low = steps[b] * scales[g], offsets[b] * minimums[g]
    if factor == _NONE:
        return
    for k in range(g * group, (g + 1) * group):
        goal = values[k] + gradient[k] / moments[k, k]
        code = _nearest((goal + low) / factor, levels, even)
        if code != codes[k]:
            value = factor * levels[code] - low
            if _helps(value - values[k], gradient[k], moments[k, k]):
                codes[k] = code
                _put(row, shared, k, value)


@njit(nogil=True, cache=True)
def _descend(shared, gradient, values, codes, steps, scales, offsets, minimums):  # type: ignore[no-untyped-def]
    group = shared[3]
    direction = np.zeros(values.shape[1], np.float32)
    for r in range(values.shape[0]):
        row = (values[r], codes[r], gradient[r])
        fields = (steps[r], scales[r], offsets[r], minimums[r])
        for g in range(values.shape[1] // group):
            _refit_group(row, shared, fields, g, direction)
            _recode(row, shared, fields, g)


def settle(
    target: NDArray[np.float32],
    start: NDArray[np.float32],
    feedback: NDArray[np.float32],
    rows: NestedRows,
    errors: NDArray[np.float32],
    each: OverRows,
) -> None:
    """Round the columns of a panel in turn, each error moving the targets of those that follow.

    Args:
        target: float32[rows, columns], what the columns should be before any feedback.
        start: float32[rows, columns], the weights.
        feedback: float32[columns, columns], zero on and below the diagonal.
        rows: the panel's grid; its codes are written.
        errors: float32[rows, columns] to write weights minus values to.
        each: gives the rows to one thread or to many.
    """
    shared = _levels(rows.grid)
    factors, lows = rows.factors, rows.lows

    def work(part: slice) -> None:
        given = target[part], start[part], feedback, factors[part], lows[part], shared
        _settle(*given, rows.codes[part], errors[part])

    each(len(target), work)


def descend(
    gradient: NDArray[np.float32],
    moments: NDArray[np.float32],
    values: NDArray[np.float32],
    rows: NestedRows,
    each: OverRows,
) -> None:
    """Lower the error of a panel by its scales, minimums and codes, group by group.

    Args:
        gradient: float32[rows, columns], ``errors @ moments`` over all columns; brought up to date.
        moments: float32[columns, columns] among these.
        values: float32[rows, columns], the numbers on the grid; brought up to date.
        rows: the panel; brought up to date.
        each: gives the rows to one thread or to many.
    """
    levels, even, group = _levels(rows.grid)
    limits = np.array((*rows.grid.scales, *(rows.grid.minimums or (0, 0))), np.float32)
    shared = (moments, levels, even, group, rows.grid.block, limits)
    scales = rows.scales.astype(np.float32)
    offsets, minimums = np.zeros_like(rows.steps), np.zeros_like(scales)
    if rows.offsets is not None and rows.minimums is not None:
        offsets, minimums = rows.offsets, rows.minimums.astype(np.float32)
    arrays = (gradient, values, rows.codes, rows.steps, scales, offsets, minimums)
    each(len(values), lambda part: _descend(shared, *(array[part] for array in arrays)))
    rows.scales[:] = scales
    if rows.minimums is not None:
        rows.minimums[:] = minimums


def _levels(grid: NestedGrid) -> tuple[NDArray[np.float32], bool, int]:
    """The levels, whether they are whole numbers in a row, and the columns of a group."""
    levels = np.array(grid.levels, np.float32)
    return levels, bool((np.diff(levels) == 1).all()), grid.group
