"""Drift of a candidate from a reference, token by token, over the full vocabulary.

Logits come in position blocks; log-probabilities and sums are float64, and no more than a block of
them is held.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Logits = torch.Tensor | NDArray[np.float32]

BLOCK_ELEMENTS = 1 << 25
"""Logits held at a time, 128 MiB of each model: enough positions to use the head well."""
_CACHED_ELEMENTS = 1 << 19  # logits that a CPU scores out of its cache


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per predicted token, arrays of [n]; 56 bytes a token."""

    tokens: NDArray[np.int32]
    """The token that followed."""
    reference_nll: NDArray[np.float64]
    """-ln p(token) under the reference, nats."""
    candidate_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    """KL(reference ‖ candidate) over the whole vocabulary, nats."""
    reference_top: NDArray[np.int32]
    """The token that the reference puts first."""
    candidate_top: NDArray[np.int32]
    reference_top_nll: NDArray[np.float64]
    """-ln p of that token, nats."""
    candidate_top_nll: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def same_top(self) -> NDArray[np.bool_]:
        """Both put the same token first."""
        return np.asarray(self.reference_top == self.candidate_top)

    @property
    def dp(self) -> NDArray[np.float64]:
        """Change of the probability of the token that followed, candidate minus reference."""
        return np.asarray(np.exp(-self.candidate_nll) - np.exp(-self.reference_nll))

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Field → array."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def save(self, path: Path) -> None:
        """Write them as an ``.npz`` file."""
        arrays: dict[str, Any] = self.as_arrays()
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> TokenScores:
        """Read an ``.npz`` file. Raises OSError, ValueError or EOFError when it is not whole."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[f.name] for f in fields(cls)))
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: no token scores") from error


def concatenate(parts: Sequence[TokenScores]) -> TokenScores:
    """All parts (at least one) as one."""
    names = [f.name for f in fields(TokenScores)]
    return TokenScores(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def no_scores() -> TokenScores:
    """Those of no token at all."""
    empty: dict[str, NDArray[Any]] = {f.name: np.empty(0) for f in fields(TokenScores)}
    return TokenScores(**empty)


def split(scores: TokenScores, counts: Sequence[int]) -> list[TokenScores]:
    """The inverse of :func:`concatenate` for parts of these lengths."""
    arrays, ends = scores.as_arrays(), np.cumsum(counts)
    return [
        TokenScores(**{name: array[end - count : end] for name, array in arrays.items()})
        for end, count in zip(ends, counts, strict=True)
    ]


def block_positions(vocab: int) -> int:
    """Positions whose logits are held at a time."""
    return max(16, BLOCK_ELEMENTS // vocab)


def score(reference: Logits, candidate: Logits, tokens: NDArray[np.int64]) -> TokenScores:
    """Score logits float32[n, vocab] of both models for the ``tokens`` int64[n] that followed.

    Both lie on one torch device, where the work is done.
    """
    import torch

    base, other = torch.as_tensor(reference), torch.as_tensor(candidate)
    rows, vocab = base.shape
    step = max(1, _CACHED_ELEMENTS // vocab) if base.device.type == "cpu" else rows
    parts = [slice(begin, begin + step) for begin in range(0, rows, step)]
    return concatenate([_score(base[part], other[part], tokens[part]) for part in parts])


def _score(
    reference: torch.Tensor, candidate: torch.Tensor, tokens: NDArray[np.int64]
) -> TokenScores:
    import torch

    base = torch.log_softmax(reference.double(), dim=1)
    other = torch.log_softmax(candidate.double(), dim=1)
    followed = torch.from_numpy(tokens).to(base.device)[:, None]
    best, first = base.max(dim=1)
    best_other, first_other = other.max(dim=1)
    nll, nll_other = -base.gather(1, followed), -other.gather(1, followed)
    terms = torch.exp(base).mul_(base - other)
    # p = 0 contributes 0 even where log q is -inf
    terms.masked_fill_(torch.isneginf(base), 0.0)
    return TokenScores(
        tokens=tokens.astype(np.int32),
        reference_nll=nll[:, 0].cpu().numpy(),
        candidate_nll=nll_other[:, 0].cpu().numpy(),
        kl=terms.sum(dim=1).cpu().numpy(),
        reference_top=first.cpu().numpy().astype(np.int32),
        candidate_top=first_other.cpu().numpy().astype(np.int32),
        reference_top_nll=-best.cpu().numpy(),
        candidate_top_nll=-best_other.cpu().numpy(),
    )
