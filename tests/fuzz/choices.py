"""Decisions drawn from bytes: a coverage-guided fuzzer and a seed steer the same mutators."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A stream of decisions; once the bytes are used up every decision is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @classmethod
    def seeded(cls, seed: int, size: int = 160) -> Choices:
        """Decisions that depend on ``seed`` alone."""
        return cls(random.Random(seed).randbytes(size))

    def below(self, count: int) -> int:
        """A number from 0 to ``count`` - 1."""
        if count < 2:
            return 0
        width = 1 if count <= 256 else 2 if count <= 1 << 16 else 4
        begin, self._at = self._at, self._at + width
        return int.from_bytes(self._data[begin : self._at], "little") % count

    def chance(self, among: int) -> bool:
        """True for one of ``among``, never once the bytes are used up."""
        return self.below(among) == among - 1

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def blob(self, size: int) -> bytes:
        """``size`` bytes."""
        begin, self._at = self._at, self._at + size
        return self._data[begin : self._at].ljust(size, b"\0")
