"""What the slabs of one band share, whichever threads they are in."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """A value that the first of ``turns`` users makes, and that nobody needs after the last."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.lock = Lock()
        self.value: _T | None = None

    def get(self, make: Callable[[], _T]) -> _T:
        """The value. Raises what ``make`` raises, and then the next user tries."""
        with self.lock:
            if self.value is None:
                self.value = make()
            return self.value

    def is_last(self) -> bool:
        """Counts a turn that is over; whether it was the last."""
        with self.lock:
            self.turns -= 1
            return not self.turns
