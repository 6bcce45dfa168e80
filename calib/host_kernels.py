"""The sweep of :mod:`~zenconvert.calib.sweep` on the CPU, in Numba: a row at a time, in cache.

What plain tensor operations do in a launch a column is here one pass over a panel that fits into
the first-level cache. Rows are independent, so the threads that share them change no result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

_FEWEST_ROWS: Final = 64  # a thread is not worth starting for less
_EVEN: Final = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds half to even
_FAR: Final = np.float32(1024.0)


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

    _over_rows(len(target), work)
    return values, settled


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A C-contiguous array: one Numba type, so one compiled kernel."""
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array


def _over_rows(count: int, work: Callable[[slice], None]) -> None:
    threads = len(os.sched_getaffinity(0))
    size = max(_FEWEST_ROWS, -(-count // threads))
    if size >= count:
        work(slice(0, count))
        return
    list(_pool(threads).map(work, [slice(at, at + size) for at in range(0, count, size)]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
