"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""
Count = Callable[[int, int], None]
"""Called with (done, total)."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
