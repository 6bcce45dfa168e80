"""Kernels for the CPU, in Numba: a row at a time, in the first-level cache.

:func:`settle` is the sweep of :mod:`~zenconvert.calib.solvers.sweep`, :func:`search_rows` the
search of :mod:`~zenconvert.calib.solvers.grid`; both agree with the plain tensor operations there
to rounding. Rows are independent, so the threads that share them change no result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.calib.solvers.levels import REFITS, Levels

_FEWEST_ROWS: Final = 64  # a thread is not worth starting for less
_EVEN: Final = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds half to even
_FAR: Final = np.float32(1024.0)
_ONE, _NONE = np.float32(1.0), np.float32(0.0)
_TINY: Final = np.float32(1.1754943508222875e-38)
_LARGEST: Final = np.float32(65504.0)
_SMALLEST: Final = np.float32(2.0**-24)
_NORMAL: Final = np.float32(2.0**-14)
_SUBNORMAL: Final = np.float32(0.75)  # adding and subtracting it rounds to multiples of 2**-24


@njit(nogil=True, cache=True)
def _half(value):  # type: ignore[no-untyped-def]
    """The nearest positive finite float16, as ``round_scale``."""
    value = min(max(value, _SMALLEST), _LARGEST)
    if value < _NORMAL:
        return (value + _SUBNORMAL) - _SUBNORMAL
    bits = np.float32(value).view(np.uint32)
    bits = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(
        0xFFFFE000
    )
    return np.uint32(bits).view(np.float32)


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})  # sums may run in several lanes
def _cost(target, importance, scale, zero, top):  # type: ignore[no-untyped-def]
    inverse, total = _ONE / scale, _NONE
    for k in range(target.shape[0]):
        steps = np.rint(target[k] * inverse) + zero
        gap = (min(max(steps, _NONE), top) - zero) * scale - target[k]
        total += gap * gap * importance[k]
    return total


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _fitted(target, importance, scale, zero, top):  # type: ignore[no-untyped-def]
    inverse, product, square = _ONE / scale, _NONE, _NONE
    for k in range(target.shape[0]):
        steps = np.rint(target[k] * inverse) + zero
        steps = min(max(steps, _NONE), top) - zero
        product += steps * target[k] * importance[k]
        square += steps * steps * importance[k]
    return product / max(square, _TINY)


@njit(nogil=True, cache=True)
def _best(row, importance, shrinks, top, midpoint, lowest, refits):  # type: ignore[no-untyped-def]
    """Scale and zero of one group of one row."""
    symmetric, high, low = midpoint > _NONE, _NONE, _NONE
    for k in range(row.shape[0]):
        high, low = max(high, row[k]), min(low, row[k])
    if symmetric:
        full, centre, shifts = max(high, -low) * (np.float32(2.0) / top), midpoint, 1
    else:
        full, shifts = (high - low) / top, 3
        centre = np.rint(-low / max(full, _SMALLEST))
    least = np.float32(np.inf)
    best, origin = _SMALLEST, centre
    for shrink in shrinks:
        scale = _half(full * shrink)
        for shift in range(shifts):
            zero = centre
            if not symmetric:
                zero = min(max(centre + np.float32(shift - 1), lowest), top)
            cost = _cost(row, importance, scale, zero, top)
            if cost < least:
                least, best, origin = cost, scale, zero
    for _ in range(refits):
        scale = _half(_fitted(row, importance, best, origin, top))
        cost = _cost(row, importance, scale, origin, top)
        if cost < least:
            least, best = cost, scale
    return best, origin


@njit(nogil=True, cache=True)
def _search(target, importance, shrinks, top, midpoint, lowest, refits, scales, zeros):  # type: ignore[no-untyped-def]
    for r in range(target.shape[0]):
        scales[r], zeros[r] = _best(target[r], importance, shrinks, top, midpoint, lowest, refits)


@njit(nogil=True, cache=True)
def _round(target, importance, group, shrinks, top, midpoint, lowest, refits, codes, scales, zeros):  # type: ignore[no-untyped-def]
    """Whether all numbers are finite; else the rest is meaningless."""
    rows, columns = target.shape
    exponent, endless = np.uint32(0x7F800000), 0
    for r in range(rows):
        bits = target[r].view(np.uint32)
        for k in range(columns):
            endless += (bits[k] & exponent) == exponent
        for begin in range(0, columns, group):
            row = target[r, begin : begin + group]
            weights = importance[begin : begin + group]
            scale, zero = _best(row, weights, shrinks, top, midpoint, lowest, refits)
            scales[r, begin // group], zeros[r, begin // group] = scale, zero
            inverse, into = _ONE / scale, codes[r, begin : begin + group]
            for k in range(row.shape[0]):
                into[k] = np.uint8(min(max(np.rint(row[k] * inverse) + zero, _NONE), top))
    return endless == 0


def search_rows(
    target: torch.Tensor, importance: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of every row; arguments as in ``search``."""
    scales = torch.empty(target.shape[:-1])
    zeros = torch.empty_like(scales)
    given = _given(levels)
    groups = target.reshape(-1, *target.shape[-2:])
    weights = importance.expand(*target.shape[:-2], target.shape[-1]).reshape(len(groups), -1)
    found = [array.reshape(len(groups), -1) for array in (scales.numpy(), zeros.numpy())]
    for number, group in enumerate(groups):
        rows, weight = _array(group), _array(weights[number])
        outputs = [array[number] for array in found]

        def work(
            part: slice,
            rows: NDArray[Any] = rows,
            weight: NDArray[Any] = weight,
            outputs: list[NDArray[Any]] = outputs,
        ) -> None:
            out = [array[part] for array in outputs]
            _search(rows[part], weight, *given, *out)

        over_rows(len(rows), work)
    return scales, zeros


def round_rows(
    weight: torch.Tensor, importance: torch.Tensor, group: int, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Codes of rows on the grids that :func:`search_rows` finds, in the caller's thread alone.

    Args:
        weight: float32[rows, columns].
        importance: float32[columns], not negative.
        group: columns of a group; the last may have fewer.
        levels: the codes.

    Returns codes uint8[rows, columns], scales and zeros float32[rows, groups]; None for a weight
    that is not finite.
    """
    groups = -(-weight.shape[1] // group)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales, zeros = (torch.empty(len(weight), groups) for _ in range(2))
    outputs = (codes.numpy(), scales.numpy(), zeros.numpy())
    finite = _round(_array(weight), _array(importance), group, *_given(levels), *outputs)
    return (codes, scales, zeros) if finite else None


def _given(levels: Levels) -> tuple[Any, ...]:
    """The levels as the kernels take them."""
    shrinks = np.array(levels.shrinks(), dtype=np.float32)
    midpoint = levels.midpoint if levels.symmetric else 0
    numbers = (np.float32(n) for n in (levels.top, midpoint, levels.lowest_zero))
    return (shrinks, *numbers, REFITS)


@njit(nogil=True, cache=True)
def _settle(target, start, feedback, scale, zero, top, values, settled):  # type: ignore[no-untyped-def]
    rows, columns = target.shape
    wide = scale.shape[1] > 1
    for r in range(rows):
        for k in range(columns):
            settled[r, k] = target[r, k]
        for j in range(columns):
            g = j if wide else 0
            steps = settled[r, j] * (np.float32(1.0) / scale[r, g])
            steps = min(max(steps, -_FAR), _FAR)
            steps = (steps + _EVEN) - _EVEN + zero[r, g]
            value = (min(max(steps, np.float32(0.0)), top) - zero[r, g]) * scale[r, g]
            values[r, j] = value
            error = start[r, j] - value
            for k in range(j + 1, columns):
                settled[r, k] += error * feedback[j, k]


def settle(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and the targets that they were rounded from; arguments as in ``sweep``."""
    values, settled = torch.empty_like(target), torch.empty_like(target)
    given = [_array(t) for t in (target, start, scale, zero)]
    back, ceiling = _array(feedback), np.float32(top)
    outputs = [values.numpy(), settled.numpy()]

    def work(rows: slice) -> None:
        goal, from_, grid, origin = (array[rows] for array in given)
        _settle(goal, from_, back, grid, origin, ceiling, *(array[rows] for array in outputs))

    over_rows(len(target), work)
    return values, settled


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A C-contiguous array: one Numba type, so one compiled kernel."""
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array


def over_rows(count: int, work: Callable[[slice], None]) -> None:
    """Give so many rows to as many threads as there are cores, some to each."""
    threads = len(os.sched_getaffinity(0))
    size = max(_FEWEST_ROWS, -(-count // threads))
    if size >= count:
        work(slice(0, count))
        return
    list(_pool(threads).map(work, [slice(at, at + size) for at in range(0, count, size)]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
