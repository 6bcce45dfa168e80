"""Arithmetic whose results do not depend on how many threads there are.

Matrix libraries cut their work by the number of threads, and round differently for it. Here torch
works in one thread, and pieces of a fixed size go to as many workers as torch had threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

import torch

CPU_ROWS: Final = 512
"""Rows of a piece of work on the CPU."""

_T = TypeVar("_T")
_S = TypeVar("_S")


class RunAll(Protocol):
    """Calls a function on every item, in any order, and returns the results in order."""

    def __call__(self, work: Callable[[_S], _T], items: Iterable[_S], /) -> list[_T]: ...


_running: ContextVar[RunAll | None] = ContextVar("running", default=None)


@contextmanager
def exact(device: torch.device, *, alone: bool = True) -> Iterator[RunAll]:
    """Float32 products in full precision; on the CPU, the same for any number of threads.

    Work given to the yielded function must not depend on each other. It is done in turn on CUDA,
    and where the caller is not ``alone`` but one of several workers.
    """
    outer = _running.get()
    if outer is not None:
        yield outer
        return
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    pool: ThreadPoolExecutor | None = None
    if device.type == "cpu":
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(threads) if threads > 1 and alone else None

    def run(work: Callable[[Any], Any], items: Iterable[Any], /) -> list[Any]:
        return list((map if pool is None else pool.map)(work, items))

    token = _running.set(run)
    try:
        yield run
    finally:
        _running.reset(token)
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
