"""Fisher information of a model's parts: sums over gradients of its own log-likelihood.

Labels are drawn from the model's distribution, so that the sums are those of the true Fisher; a
window's loss is the sum over its tokens, so that what a token does to later ones counts. With g the
gradient at the output of a linear module (or of the embedding) for one token, c_l the weight of a
token of language l::

    gradients   Σ g²           per output, per language
    embedding   Σ c_l·g·gᵀ     of the embedding's rows
    head        Σ c_l·|g|²·x·xᵀ  where the head is tied to the embedding: what its rows cost there
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.reference.block import Block

_LARGEST: Final = 1e15
"""Gradients beyond this are faults: sums of their squares would leave float32."""
_ROWS: Final = 1024


@dataclass
class Gradients:
    """What one step of a walk back brings."""

    step: str
    """``head``, ``layers.N`` or ``embed``."""
    squares: Mapping[str, NDArray[np.float32]]
    """Module → Σ g² of its outputs, float32[languages, rows]."""
    dropped: NDArray[np.int64]
    """int64[languages]: tokens whose gradients were not finite and count as zeros."""
    moments: torch.Tensor | None = None
    """Of the embedding, and of a head that is tied to it: float32[hidden, hidden], symmetric."""
    rows: NDArray[np.float64] | None = None
    """Of the embedding: Σ c_l·|g|² over the tokens of each id, float64[vocabulary]."""


class Taker(Protocol):
    """Keeps what a walk back brings, where the next run finds it."""

    def has(self, step: str) -> bool:
        """Whether it has all of a step."""

    def put(self, part: Gradients) -> None:
        """Keep a step; after that, :meth:`has` it."""


class Squares:
    """Running sums of squares by module and language."""

    def __init__(self, languages: int) -> None:
        self.languages = languages
        self.sums: dict[str, torch.Tensor] = {}
        self._dropped: dict[str, NDArray[np.int64]] = {}

    @property
    def dropped(self) -> NDArray[np.int64]:
        """int64[languages]: tokens with gradients that are not finite, where they are the most."""
        counts = [np.zeros(self.languages, dtype=np.int64), *self._dropped.values()]
        most: NDArray[np.int64] = np.max(counts, axis=0)
        return most

    def finite(self, rows: torch.Tensor, language: int, where: str = "") -> torch.Tensor:
        """Gradients [tokens, n] in float32; zeros where they are not finite, which is counted by
        the name of the place."""
        values = rows.float()
        good = (values.abs() <= _LARGEST).all(1)
        bad = len(values) - int(good.sum())
        if bad:
            empty = np.zeros(self.languages, dtype=np.int64)
            self._dropped.setdefault(where, empty)[language] += bad
        return torch.where(good[:, None], values, 0.0) if bad else values

    def add(self, module: str, rows: torch.Tensor, language: int) -> None:
        """Add gradients [tokens, outputs] of a module."""
        if module not in self.sums:
            shape = (self.languages, rows.shape[-1])
            self.sums[module] = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        for part in torch.split(rows, _ROWS):
            values = self.finite(part, language, module)
            self.sums[module][language] += values.square().sum(0, dtype=torch.float64)

    def finish(self, modules: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
        """The sums of modules and their outputs; zeros where nothing came."""
        return {
            module: self.sums[module].float().cpu().numpy()
            if module in self.sums
            else np.zeros((self.languages, rows), dtype=np.float32)
            for module, rows in modules.items()
        }


class Watch:
    """Hooks on modules of a block that add what comes back through their outputs; a context
    manager, so that they go away again."""

    def __init__(self, block: Block, modules: Iterable[str], squares: Squares) -> None:
        self.block, self.squares = block, squares
        self.language = 0
        self.handles = [
            block.modules[module].register_forward_hook(self._hook(module)) for module in modules
        ]

    def _hook(self, module: str) -> Callable[..., None]:
        def add(gradient: torch.Tensor) -> None:
            self.squares.add(module, self.block.rows(gradient), self.language)

        def hook(torch_module: torch.nn.Module, args: Any, output: Any) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self.handles:
            handle.remove()


def drawn(seed: int, windows: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that draw the labels of some windows, float64[tokens]; those of a window
    depend on its number alone, whatever else is in the batch."""
    return np.concatenate(
        [
            np.random.default_rng([seed, window]).random(length)
            for window, length in zip(windows, lengths, strict=True)
        ]
    )


def sampled(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Labels int64[n] from the distribution of logits [n, vocabulary], by draws float64[n]."""
    sums = logits.detach().double().softmax(-1).cumsum(-1)
    found = torch.searchsorted(sums, (draws * sums[:, -1])[:, None], right=True)
    return found.squeeze(1).clamp(max=logits.shape[-1] - 1)
