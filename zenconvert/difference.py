"""What differs between two checkpoints: config, tokenizer and the numbers of every tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.opening.sources import both_with_pre, open_checkpoint
from zenconvert.planning.plan import SLAB_ELEMENTS
from zenconvert.planning.recoding import logical_rows


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor in both checkpoints, compared as decoded numbers."""

    name: str
    encodings: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    equal: bool
    """Every number is the same (NaN equals NaN)."""
    max_abs: float
    """Largest absolute difference; NaN when shapes differ or only one of two numbers is NaN."""
    relative: float
    """Root of Σ(a-b)² / Σa², 1 where Σa² is 0; NaN as above."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What ``zenconvert diff`` shows."""

    config: dict[str, tuple[Any, Any]]
    """Hyperparameter → (first, second) where they differ."""
    tokenizer: tuple[str, ...]
    """Parts of the tokenizer that differ."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    warnings: tuple[str, ...] = ()
    """What is odd about the files, and how it was taken."""

    @property
    def identical(self) -> bool:
        """True when nothing differs but storage."""
        return not (
            self.config
            or self.tokenizer
            or self.only_first
            or self.only_second
            or any(not t.equal for t in self.tensors)
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "identical": self.identical}


def diff(
    first: str | Path,
    second: str | Path,
    *,
    config: str | Path | None = None,
    pre: str | None = None,
) -> Difference:
    """Compare two checkpoints of any formats; ``config`` is that of a second without one.

    ``pre`` is the pre-tokenizer of GGUF files that do not say how they cut text.

    Raises the errors of ``open_checkpoint``.
    """
    a, b = both_with_pre(open_checkpoint(first), open_checkpoint(second, config), pre)
    shared = [name for name in a.tensors if name in b.tensors]
    return Difference(
        config=_config(a, b),
        tokenizer=_tokenizer(a, b),
        only_first=tuple(n for n in a.tensors if n not in b.tensors),
        only_second=tuple(n for n in b.tensors if n not in a.tensors),
        tensors=tuple(compare_tensors(a.tensors[n], b.tensors[n]) for n in shared),
        warnings=tuple(dict.fromkeys([*a.warnings, *b.warnings])),
    )


def _config(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[Any, Any]]:
    left, right = asdict(a.hyperparameters), asdict(b.hyperparameters)
    left["architecture"], right["architecture"] = a.architecture.id, b.architecture.id
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def _tokenizer(a: Checkpoint, b: Checkpoint) -> tuple[str, ...]:
    left, right = a.tokenizer, b.tokenizer
    fields = ("kind", "tokens", "merges", "rule", "special", "chat_template")
    return tuple(f for f in fields if getattr(left, f) != getattr(right, f))


def compare_tensors(a: Tensor, b: Tensor) -> TensorDifference:
    """Compare two tensors slab by slab."""
    encodings = (str(a.encoding), str(b.encoding))
    if a.shape != b.shape:
        nan = float("nan")
        return TensorDifference(a.name, encodings, (a.shape, b.shape), False, nan, nan)
    band = lcm(*(o.band for o in (a.order, b.order) if o is not None))
    rows = max(band, SLAB_ELEMENTS // a.columns // band * band)
    equal, largest, squares, norm = True, 0.0, 0.0, 0.0
    for begin in range(0, a.rows, rows):
        end = min(begin + rows, a.rows)
        left = logical_rows(a, begin, end).astype(np.float64)
        right = logical_rows(b, begin, end)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        equal = equal and bool(same.all())
        delta = np.abs(np.subtract(left, right, where=~same, out=np.zeros_like(left)))
        largest = float(np.maximum(largest, delta.max(initial=0.0)))
        squares += float(np.square(delta).sum())
        norm += float(np.nansum(np.square(left)))
    relative = 0.0 if equal else (squares / norm) ** 0.5 if norm else 1.0
    return TensorDifference(a.name, encodings, (a.shape, b.shape), equal, largest, relative)
