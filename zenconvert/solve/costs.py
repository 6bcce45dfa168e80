"""What errors of a weight cost: nats of divergence per token, before any file is made.

With E the errors of a linear module's weight, H = E[x·xᵀ] of what it reads and g the gradient at
what it puts out, the divergence grows by ½·tr(G·E·H·Eᵀ), G = E[g·gᵀ] (Kronecker-factored Fisher).
Errors of different rows are independent of each other, so G's diagonal is what counts::

    linear      ½·Σ_i E[g_i²]·e_i·H·e_i      over rows e_i of E
    embedding   ½·Σ_v share_v·e_v·F·e_v      share_v of all |g|², F = E[g·gᵀ] where rows come out
    tied head   ½·Σ_v E[g_v²]·e_v·X·e_v      g at the logits, X of the states, weighted by |g|²

Tokens that come often have small gradients: by their counts alone the embedding would seem to cost
twice what it does. Languages weigh what they do in the statistics. Costs add up over tensors while
they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.calib.back_plan import EMBEDDING
from zenconvert.calib.solvers.embedding import embedding_rows
from zenconvert.calib.solvers.exact import exact
from zenconvert.calib.solvers.nested import NestedCurvature, nested_curvature, nested_gptq
from zenconvert.calib.solvers.nested_rows import threads_for
from zenconvert.errors import UsageError
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import Encoding
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.inputs import HEAD, module_of
from zenconvert.reference.reference import Reference

if TYPE_CHECKING:
    from zenconvert.calib.solvers.solution import Filled
    from zenconvert.calib.statistics import InputStatistics
    from zenconvert.calib.statistics_reader import Statistics

UNKNOWN: Final = float("nan")
_ELEMENTS: Final = 1 << 22
"""Of a slab of rows that are rounded at a time."""
_MOST_ELEMENTS: Final = 1 << 25
"""Of a larger matrix, rows that are evenly spread are rounded, and stand for all."""
_TRIED_ROWS: Final = 256
"""Rows, evenly spread, that tell what a solver gains."""


@dataclass(frozen=True)
class _Cost:
    """What errors in the rows of one tensor cost."""

    terms: tuple[tuple[NDArray[np.float64], torch.Tensor], ...]
    """Weights of rows float64[rows], and moments float32[columns, columns]."""
    importance: NDArray[np.float32] | None
    """What a file without a solver is rounded with."""
    fill: Callable[[torch.Tensor, Encoding], Filled]
    """How a solver stores rows float32[n, columns]."""

    def rows(self, columns: int) -> tuple[NDArray[np.int64], float]:
        """Rows to look at, by their numbers, and how many times their cost all rows cost."""
        weights = np.sum([weight for weight, _ in self.terms], axis=0)
        counting = np.flatnonzero(weights)
        most = max(_TRIED_ROWS, _MOST_ELEMENTS // columns)
        found = _spread(counting, most) if len(self.terms) == 1 else counting
        seen = float(weights[found].sum())
        return found, float(weights.sum()) / seen if seen else 1.0

    def of(self, errors: torch.Tensor, rows: NDArray[np.int64]) -> float:
        """The cost of errors float32[n, columns] in rows of these numbers."""
        found = 0.0
        for weights, moments in self.terms:
            lost = ((errors @ moments) * errors).sum(1, dtype=torch.float64)
            found += 0.5 * float(weights[rows] @ lost.cpu().numpy())
        return found


@dataclass(frozen=True)
class _Inputs:
    """What modules read."""

    statistics: InputStatistics
    moments: torch.Tensor
    """Sums, on the device."""

    @cached_property
    def mean(self) -> torch.Tensor:
        """H."""
        return self.moments / (self.statistics.weight or 1.0)

    @cached_property
    def importance(self) -> NDArray[np.float32]:
        """What rounding is given."""
        return self.statistics.importance()

    @cached_property
    def curvature(self) -> NestedCurvature:
        """What solving takes."""
        return nested_curvature(self.moments, self.statistics.count)

    def fill(self, rows: torch.Tensor, encoding: Encoding) -> Filled:
        """Rows as a solver stores them."""
        return nested_gptq(rows, encoding, self.curvature, self.importance)


class Costs:
    """The costs of a checkpoint's tensors, from statistics of a walk forward and one back."""

    def __init__(self, checkpoint: Checkpoint, statistics: Statistics, device: str) -> None:
        """Raises UsageError for statistics without second moments or Fisher information."""
        statistics.check_moments()
        self.statistics, self.fisher = statistics, statistics.fisher()
        self.reference = Reference(checkpoint, logical_rows, device=device)
        self.tied = f"{HEAD}.weight" not in checkpoint.tensors
        self._last: _Inputs | None = None

    def losses(self, part: Tensor, encodings: Sequence[Encoding], *, solves: bool) -> list[float]:
        """What it costs to store a weight in each of some encodings, rounded as a file without a
        solver is, or as :func:`zenconvert.solve.solving.solved` fills it; :data:`UNKNOWN` where the
        statistics do not tell.

        Raises InvalidInput for numbers that an encoding cannot hold.
        """
        cost = self._cost(part)
        if cost is None:
            return [UNKNOWN] * len(encodings)
        weight = self.reference.load(part.name)
        rows, times = cost.rows(part.columns)
        found = np.zeros(len(encodings))
        with exact(weight.device):
            for number, encoding in enumerate(encodings):
                if encoding != part.encoding:  # it stays what it is, bit for bit
                    found[number] = times * _rounded(cost, weight, rows, encoding)
        changed = [encoding for encoding in encodings if encoding != part.encoding]
        if solves and (nested := [e for e in changed if e.nested_grid() is not None]):
            gain = _gain(cost, weight, rows, nested[len(nested) // 2])
            found *= [gain if encoding in nested else 1.0 for encoding in encodings]
        return [float(loss) if np.isfinite(loss) else UNKNOWN for loss in found]

    def _cost(self, part: Tensor) -> _Cost | None:
        """None for what is neither the embedding nor a module whose inputs were measured."""
        if module_of(part.name) == EMBEDDING:
            return self._of_embedding()
        module = module_of(part.name)
        if part.is_half or module not in self.statistics.modules:
            return None
        try:
            weights = self.statistics.gradients(module).astype(np.float64)
        except UsageError:  # a router, or what stays in floats
            return None
        inputs = self._read(module)
        return _Cost(((weights, inputs.mean),), inputs.importance, inputs.fill)

    def _of_embedding(self) -> _Cost:
        fisher, shares = self.fisher, self.statistics.row_shares()
        moments = fisher.moments
        terms = [(shares, moments if fisher.head is None else moments - fisher.head)]
        if self.tied and fisher.head is not None:
            gradients = self.statistics.gradients(HEAD).astype(np.float64)
            terms.append((gradients / (gradients.sum() or 1.0), fisher.head))
        placed = tuple((weights, one.to(self.reference.device)) for weights, one in terms)
        return _Cost(placed, None, lambda rows, encoding: embedding_rows(rows, encoding, fisher))

    def _read(self, module: str) -> _Inputs:
        """What a module reads; kept for others that read the same."""
        if self._last is None or module not in self._last.statistics.modules:
            self._last = None  # one set of moments at a time
            found = self.statistics.of(module, moments=True)
            assert found.moments is not None
            self._last = _Inputs(found, found.moments.to(self.reference.device))
        return self._last


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _rounded(
    cost: _Cost, weight: torch.Tensor, rows: NDArray[np.int64], encoding: Encoding
) -> float:
    """The cost of rounding some rows of a weight."""
    step, found = max(1, _ELEMENTS // weight.shape[1]), 0.0
    for begin in range(0, len(rows), step):
        here = rows[begin : begin + step]
        taken = weight[torch.from_numpy(here).to(weight.device)]
        values = taken.cpu().numpy()
        errors = np.empty_like(values)
        work = partial(_take_errors, values, encoding, cost.importance, errors)
        threads_for(weight)(len(here), work)
        found += cost.of(torch.from_numpy(errors).to(weight.device), here)
    return found


def _take_errors(
    values: NDArray[np.float32],
    encoding: Encoding,
    importance: NDArray[np.float32] | None,
    errors: NDArray[np.float32],
    part: slice,
) -> None:
    """Put the errors of rounding some rows where they belong."""
    data = encoding.encode(values[part], importance)
    errors[part] = values[part] - encoding.decode(data, values.shape[1])


def _gain(cost: _Cost, weight: torch.Tensor, rows: NDArray[np.int64], encoding: Encoding) -> float:
    """Which share of rounding's cost is left when a solver fills a weight; much the same for all
    nested grids, so that a few rows in one of them tell."""
    tried = _spread(rows, _TRIED_ROWS)
    before = _rounded(cost, weight, tried, encoding)
    taken = weight[torch.from_numpy(tried).to(weight.device)]
    values = torch.from_numpy(cost.fill(taken, encoding).values.dequantize()).to(weight.device)
    after = cost.of(taken - values, tried)
    return min(1.0, after / before) if before > 0 else 1.0
