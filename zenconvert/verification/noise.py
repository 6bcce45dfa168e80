"""The noise floor: how far the reference moves from itself in the type that it is served in.

Nobody serves float32. What bfloat16 or float16 arithmetic alone does to the reference is no damage
of a conversion, and differences inside it cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zenconvert.base.progress import Count
from zenconvert.errors import NotFinite
from zenconvert.formats.registry import format_named
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.cache import cache_folder, new_file, taking_turns, touch
from zenconvert.verification.drift import Drift, Summary
from zenconvert.verification.histogram import histogram_as_dict
from zenconvert.verification.metrics import TokenScores, concatenate, no_scores, split
from zenconvert.verification.scoring import HeadOnStates, score_windows
from zenconvert.verification.states import States, final_states, output_head

_SHORT: Final = {"float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Noise:
    """Drift of the reference from itself in another type."""

    dtype: str
    """``float16`` or ``bfloat16``."""
    summary: Summary
    histogram: tuple[int, ...]
    """Positions by KL divergence, in the classes of ``histogram.EDGES``."""
    overflows: bool = False
    """float16 was asked for and gave no finite logits, so that bfloat16 was measured."""

    @property
    def label(self) -> str:
        """f16 or bf16."""
        return _SHORT[self.dtype]

    def covers(self, drift: Drift, language: str | None = None) -> bool:
        """True when the mean KL divergence, up to the end of its interval, is no more than the
        floor's; ``language`` None for overall."""
        floor = self.summary.overall if language is None else self.summary.languages[language]
        high = drift.intervals.get("kl.mean", (drift.kl_mean, drift.kl_mean))[1]
        return high <= floor.kl_mean

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "dtype": self.dtype,
            "overflows": self.overflows,
            **self.summary.as_dict(),
            "kl_histogram": histogram_as_dict(self.histogram),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Noise:
        """The inverse of :meth:`as_dict`. Raises KeyError or TypeError."""
        counts = tuple(value["kl_histogram"]["counts"])
        return cls(value["dtype"], Summary.from_dict(value), counts, bool(value["overflows"]))


def serving_dtype(candidate: Checkpoint) -> str:
    """The type that an artifact is served in: the format's own, else what its config names."""
    if (own := format_named(candidate.format).serving_dtype) is not None:
        return own
    named = candidate.config.get("dtype") or candidate.config.get("torch_dtype")
    return named if named in _SHORT else "bfloat16"


def noise_scores(
    reference: Checkpoint,
    states: States,
    windows: Sequence[Window],
    key: str,
    dtype: str,
    *,
    device: str,
    progress: Count,
) -> tuple[str, list[TokenScores]]:
    """Scores of the reference in ``dtype`` against its own states, cached, and the type measured:
    bfloat16 where float16 overflows. Raises NotFinite for a reference that is not finite at all."""
    path = cache_folder() / "noise" / f"{key}-{dtype}.npz"
    with taking_turns(path):
        scores = _load(path, windows)
        if scores is not None:
            touch(path)
            progress(1, 1)
        else:
            try:
                scores = _measure(
                    reference, states, windows, dtype, device=device, progress=progress
                )
            except NotFinite:
                if dtype == "bfloat16":
                    raise
                scores = []  # noted in the cache as such
            _save(path, scores)
    if scores:
        return dtype, scores
    return noise_scores(
        reference, states, windows, key, "bfloat16", device=device, progress=progress
    )


def _measure(
    reference: Checkpoint,
    states: States,
    windows: Sequence[Window],
    dtype: str,
    *,
    device: str,
    progress: Count,
) -> list[TokenScores]:
    served = final_states(reference, windows, device=device, dtype=dtype, progress=progress)
    return score_windows(
        HeadOnStates(states.rows, output_head(reference, device=device)),
        HeadOnStates(
            served.rows,
            output_head(reference, device=device, dtype=dtype),
            dtype,
        ),
        windows,
        reference.hyperparameters.vocab,
        lambda done, total: None,
    )


def _save(path: Path, scores: Sequence[TokenScores]) -> None:
    with new_file(path) as temporary:
        if temporary is not None:
            (concatenate(scores) if scores else no_scores()).save(temporary)


def _load(path: Path, windows: Sequence[Window]) -> list[TokenScores] | None:
    """None where there is nothing usable, an empty list where the type overflows."""
    try:
        flat = TokenScores.load(path)
    except (OSError, ValueError, EOFError):
        return None
    counts = [len(window.ids) - 1 for window in windows]
    if len(flat) == 0:
        return []
    return split(flat, counts) if len(flat) == sum(counts) else None
