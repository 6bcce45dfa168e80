"""Hooks that gather the statistics of a block's inputs while windows go through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.calib.moments import Moments
from zenconvert.calib.statistics import InputStatistics
from zenconvert.errors import InvalidInput
from zenconvert.reference.block import Block
from zenconvert.reference.inputs import Input
from zenconvert.reference.passage import Enough

_ROWS: Final = 1024  # widened to float32 at a time

Seen = Callable[[torch.Tensor], torch.Tensor]


class Sums:
    """Running sums of one input."""

    def __init__(self, item: Input, languages: int, *, moments: bool, device: str) -> None:
        shape = (languages, item.columns)
        self.item = item
        self.tokens = np.zeros(languages, dtype=np.int64)
        self.squares = torch.zeros(shape, dtype=torch.float64, device=device)
        self.magnitudes = torch.zeros(shape, dtype=torch.float64, device=device)
        self.moments = Moments(item.columns, device) if moments and item.solved else None

    def add(self, rows: torch.Tensor, language: int, weight: float) -> None:
        """Add rows [tokens, columns] of a language whose tokens count ``weight``."""
        self.tokens[language] += len(rows)
        for part in torch.split(rows, _ROWS):
            values = part.float()
            self.squares[language] += values.square().sum(0, dtype=torch.float64)
            self.magnitudes[language] += values.abs().sum(0, dtype=torch.float64)
        if self.moments is not None and weight and len(rows):
            self.moments.add(rows, weight)

    def finish(self, token_weights: NDArray[np.float64]) -> InputStatistics:
        """The statistics; nothing may be added any more."""
        return InputStatistics(
            name=self.item.name,
            modules=self.item.modules,
            token_weights=token_weights,
            tokens=self.tokens,
            squares=self.squares.float().cpu().numpy(),
            magnitudes=self.magnitudes.float().cpu().numpy(),
            moments=self.moments.finish() if self.moments is not None else None,
        )


class Collector:
    """Watches some inputs of a block; a context manager, so that the hooks go away again."""

    def __init__(
        self,
        block: Block,
        sums: Sequence[Sums],
        token_weights: NDArray[np.float64],
        *,
        router: str | None,
        stop: Input | None,
    ) -> None:
        """``router`` names the router where its tokens go through every expert for statistics;
        nothing that comes before the module that reads ``stop`` is of interest.
        """
        self.block, self.token_weights = block, token_weights
        self.language = 0
        experts = block.experts
        self.routed = np.zeros((len(token_weights), len(experts)), dtype=np.int64)
        self.handles = [
            module.register_forward_pre_hook(self._count(number))
            for number, module in enumerate(experts)
        ]
        for one in sums:
            module = one.item.modules[0]
            seen: Seen = _as_it_is
            if router is not None and one.item.expert is not None:
                module = router
                seen = experts[one.item.expert].inner_of_all
            hook = self._add(one, seen)
            self.handles.append(block.modules[module].register_forward_pre_hook(hook))
        if stop is not None:
            hooked = block.modules[stop.modules[0]]
            self.handles.append(hooked.register_forward_pre_hook(_stop))

    def _add(self, sums: Sums, seen: Seen) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = seen(self.block.rows(args[0]))
            sums.add(rows, self.language, float(self.token_weights[self.language]))

        return hook

    def _count(self, expert: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.routed[self.language, expert] += len(args[0])

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


def _as_it_is(rows: torch.Tensor) -> torch.Tensor:
    return rows


def _stop(module: torch.nn.Module, args: Any) -> None:
    raise Enough


def check_finite(found: InputStatistics, languages: Sequence[str], where: str) -> None:
    """Raise InvalidInput when activations were not finite."""
    for language, sums in zip(languages, found.squares, strict=True):
        if not np.isfinite(sums).all():
            raise InvalidInput(
                f"{where}: what {found.name} reads is not finite in {language!r}; compute in a "
                "dtype of wider range (bf16 or f32), or look for damaged weights"
            )
