"""Windows of one language that go through a model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.texts.windows import Window

_TOKENS: Final = {"cuda": 8192}
_TOKENS_ELSEWHERE: Final = 4096


def most_tokens(device: str) -> int:
    """Most padded tokens that go through a block at a time, unless one window has more."""
    return _TOKENS.get(device.partition(":")[0], _TOKENS_ELSEWHERE)


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one language that go through a block together."""

    language: int
    windows: tuple[int, ...]
    lengths: tuple[int, ...]
    begin: int
    """First row of the batch in the hidden states, which stand in the order of the batches."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)


def make_batches(
    windows: Sequence[Window], languages: Sequence[str], most: int, border: int = 0
) -> list[Batch]:
    """Windows of one language and similar length together, ``most`` padded tokens a batch.

    Of a model that rotates texts beyond a ``border`` otherwise, those on one side of it.
    """
    found: list[Batch] = []
    begin = 0
    for number, language in enumerate(languages):
        own = [i for i, window in enumerate(windows) if window.language == language]
        own.sort(key=lambda i: -len(windows[i].ids))
        while own:
            longest = len(windows[own[0]].ids)
            count = max(1, most // longest)
            if longest > border:
                count = min(count, sum(len(windows[i].ids) > border for i in own))
            group, own = own[:count], own[count:]
            lengths = tuple(len(windows[i].ids) for i in group)
            found.append(Batch(number, tuple(group), lengths, begin))
            begin += sum(lengths)
    return found
