"""Two models over the same token ids, position block by position block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from zenconvert.base.progress import Count
from zenconvert.errors import NotFinite
from zenconvert.texts.windows import Window
from zenconvert.verification.drift import Scores
from zenconvert.verification.metrics import TokenScores, block_positions, concatenate, score

if TYPE_CHECKING:
    import torch

    from zenconvert.reference.head import Head


class Logits(Protocol):
    """Anything that has logits float32[end - begin, vocab] of positions of a window."""

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class HeadOnStates:
    """Logits from stored states: the head is applied to the block that is asked for."""

    rows: Callable[[int, int, int], torch.Tensor]
    """``(window, begin, end)`` → states [end - begin, hidden]."""
    head: Head
    dtype: str = "float32"
    """The torch type in which logits come out; the head computes in float32 in any case."""

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """float32[end - begin, vocab], on the head's device."""
        import torch

        return self.head(self.rows(window, begin, end)).to(getattr(torch, self.dtype)).float()


def score_windows(
    reference: Logits, candidate: Logits, windows: Sequence[Window], vocab: int, progress: Count
) -> list[TokenScores]:
    """Scores of every window. Raises NotFinite for logits that are not finite."""
    import torch

    step = block_positions(vocab)
    result = []
    for index, window in enumerate(windows):
        ids = np.asarray(window.ids, dtype=np.int64)
        parts = []
        for begin in range(0, len(ids) - 1, step):
            end = min(begin + step, len(ids) - 1)
            base = reference.logits(index, begin, end)
            other = candidate.logits(index, begin, end).to(base.device)
            for name, values in (("reference", base), ("candidate", other)):
                if not torch.isfinite(values).all():
                    where = f"sample {window.sample} ({window.language}), tokens {begin} to {end}"
                    raise NotFinite(f"the {name}'s logits are not finite in {where}")
            parts.append(score(base, other, ids[begin + 1 : end + 1]))
        result.append(concatenate(parts))
        progress(index + 1, len(windows))
    return result


def by_language(windows: Sequence[Window], scores: Sequence[TokenScores]) -> list[Scores]:
    """The scores of windows, gathered by language."""
    found: dict[str, Scores] = {}
    for window, part in zip(windows, scores, strict=True):
        found.setdefault(window.language, Scores(window.language)).add(window.sample, part)
    return list(found.values())
