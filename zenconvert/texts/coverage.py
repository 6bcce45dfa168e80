"""What a calibration has seen: tokens and vocabulary per language, experts never reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.texts.windows import Window


@dataclass(frozen=True, slots=True)
class LanguageCoverage:
    """What was read of one language."""

    language: str
    tokens: int
    windows: int
    documents: int
    """Documents that were read, at least in part."""
    unused_documents: int
    """Documents that were there and not needed."""
    split_documents: int
    """Documents that became several windows, as they are longer than the context."""
    cut_tokens: int
    """Tokens of the last document that were left out, as the language had enough."""
    vocabulary: float
    """Share of the model's vocabulary that occurs."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def language_coverage(
    language: str, read: Sequence[Sequence[Window]], *, unused: int, cut: int, vocabulary: int
) -> LanguageCoverage:
    """Coverage of a language from the windows of each document that was read."""
    windows = [window for document in read for window in document]
    return LanguageCoverage(
        language=language,
        tokens=sum(len(window.ids) for window in windows),
        windows=len(windows),
        documents=len(read),
        unused_documents=unused,
        split_documents=sum(len(document) > 1 for document in read),
        cut_tokens=cut,
        vocabulary=len({token for window in windows for token in window.ids}) / vocabulary,
    )


@dataclass(frozen=True, slots=True)
class ExpertCoverage:
    """Experts that no token was routed to, as ``layer.expert``."""

    experts: int
    """Experts of all layers."""
    never: tuple[str, ...]
    """Reached by no language."""
    by_language: Mapping[str, tuple[str, ...]]
    """Language → not reached by it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def expert_coverage(
    routed: Mapping[int, NDArray[np.int64]], languages: Sequence[str]
) -> ExpertCoverage:
    """``routed`` are the tokens that reached each expert: layer → int64[languages, experts]."""
    by_language = {
        language: tuple(
            f"{layer}.{expert}"
            for layer, counts in routed.items()
            for expert in np.flatnonzero(counts[number] == 0)
        )
        for number, language in enumerate(languages)
    }
    never = tuple(
        f"{layer}.{expert}"
        for layer, counts in routed.items()
        for expert in np.flatnonzero(counts.sum(axis=0) == 0)
    )
    experts = sum(counts.shape[1] for counts in routed.values())
    return ExpertCoverage(experts, never, by_language)
