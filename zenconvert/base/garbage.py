"""Python's collector of garbage, where there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MANY: Final = 200_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for garbage seldom, for what makes hundreds of thousands of objects that all stay."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _MANY) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
