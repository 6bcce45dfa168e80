"""Channel scales of AWQ: what a norm or linear puts out is divided, what linears take in is
multiplied, so that the model computes the same and large channels are rounded more finely.

After Lin et al. 2023 (arXiv 2306.00978). With the second moments of the inputs at hand the output
error of a candidate is tr(ΔW·X·Xᵀ·ΔWᵀ), and no forward pass is needed. Under grouped-query
attention a value channel has one scale that its query heads share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from zenconvert.calib.solvers.exact import exact
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rounded import spans_of
from zenconvert.calib.solvers.rtn import round_runs, search_runs
from zenconvert.model.target import Scheme

_STEPS: Final = 10  # of the exponent, and twice as fine around the best
_ROWS: Final = 512  # of a weight that judge a candidate
_LIMIT: Final = 2.0**10
"""Scales stay within this factor of 1, so that float16 holds what is folded."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of the inputs of one linear; linears with the same input may share it."""

    moments: torch.Tensor
    """float32[in, in], sum or mean of x·xᵀ over tokens; or float32[in], its diagonal."""
    mean_abs: torch.Tensor
    """float32[in], mean of |x|."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Heads:
    """How a value projection's channels reach the inputs of the output projection."""

    query: int
    kv: int

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales of value channels float32[kv · dim] → of outputs of all heads [query · dim]."""
        grid = scale.reshape(self.kv, 1, -1)
        return grid.expand(-1, self.query // self.kv, -1).reshape(-1)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Statistics of the outputs of all heads → their mean for every value channel."""
        return values.reshape(self.kv, self.query // self.kv, -1).mean(1).reshape(-1)


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear that takes the scaled channels in."""

    weight: torch.Tensor
    """float32[out, in]."""
    inputs: Inputs
    scheme: Scheme
    """The grid that it will be rounded to."""


def search_scales(
    readers: Sequence[Reader],
    heads: Heads | None = None,
    *,
    powers_of_two: bool = False,
) -> torch.Tensor:
    """The channel scales with the least output error of the readers, rounded to nearest.

    ``readers`` are those that will be quantized; they share their input channels. Every reader's
    relative error counts as much as it has tokens. Returns float32[channels], all 1 where nothing
    is better or nothing is known; with ``heads`` of the value channels; with ``powers_of_two``
    only such, which any floating-point number can be multiplied by without loss.
    """
    judges = [_Judge.of(reader) for reader in readers if reader.inputs.tokens > 0]
    width = readers[0].weight.new_zeros(readers[0].weight.shape[1], dtype=torch.float32)
    activation, weight = width.clone(), width.clone()
    for judge in judges:
        activation += judge.inputs.mean_abs * judge.inputs.tokens
        weight += judge.share_of_group
    if heads is not None:
        activation, weight = heads.gather(activation), heads.gather(weight)
    none = torch.ones_like(activation)
    if not judges or not bool(activation.isfinite().all()) or not bool((activation > 0).any()):
        return none

    weight /= len(judges)

    def candidate(exponent: float, duo: bool) -> torch.Tensor:
        scale = _scale(activation, weight, exponent, duo)
        return scale.log2().round().exp2() if powers_of_two else scale

    def cost(scale: torch.Tensor) -> float:
        full = scale if heads is None else heads.spread(scale)
        return sum(judge.cost(full) for judge in judges)

    coarse = [(step / _STEPS, duo) for duo in (True, False) for step in range(1, _STEPS + 1)]
    scales = [none, *(candidate(*at) for at in coarse)]
    with exact(none.device) as run:
        costs = run(cost, scales)
        least = costs.index(min(costs))
        if least > 0:
            exponent, duo = coarse[least - 1]
            around = (exponent - 0.5 / _STEPS, exponent + 0.5 / _STEPS)
            fine = [candidate(at, duo) for at in around]
            scales, costs = [scales[least], *fine], [costs[least], *run(cost, fine)]
            least = costs.index(min(costs))
    return scales[least]


def _scale(
    activation: torch.Tensor, weight: torch.Tensor, exponent: float, duo: bool
) -> torch.Tensor:
    """AWQ's candidate: large where activations are, and with ``duo`` where weights are small."""
    scale = (activation / activation.mean()).clamp(min=1e-6).pow(exponent)
    if duo:
        scale = scale / (weight.pow(1 - exponent) + 1e-4)
    scale = scale / (scale.max() * scale.min()).sqrt()
    return scale.clamp(1 / _LIMIT, _LIMIT)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Some rows of a reader, and what candidates are measured against."""

    inputs: Inputs
    scheme: Scheme
    weight: torch.Tensor
    energy: float
    share_of_group: torch.Tensor
    """float32[in]: mean over the rows of |w| over the largest of its group."""

    @classmethod
    def of(cls, reader: Reader) -> _Judge:
        scheme = reader.scheme
        step = -(-len(reader.weight) // _ROWS)
        weight = reader.weight[::step].float()
        share = torch.empty(weight.shape[1], device=weight.device)
        for begin in range(0, weight.shape[1], scheme.group or weight.shape[1]):
            part = weight[:, begin : begin + (scheme.group or weight.shape[1])].abs()
            largest = part.amax(1, keepdim=True).clamp(min=torch.finfo(part.dtype).tiny)
            share[begin : begin + part.shape[1]] = (part / largest).mean(0)
        energy = quadratic(weight, reader.inputs.moments)
        return cls(reader.inputs, replace(scheme, act_order=False), weight, energy, share)

    def cost(self, scale: torch.Tensor) -> float:
        """Relative output error with the input channels scaled, times tokens."""
        moments = self.inputs.moments
        importance = (moments if moments.ndim == 1 else moments.diagonal()) / scale.square()
        importance = importance / importance.mean()
        scaled = self.weight * scale
        runs = spans_of(self.scheme, torch.arange(len(scale)))
        levels = Levels.of(self.scheme)
        values = round_runs(scaled, *search_runs(scaled, importance, runs, levels), runs, levels)
        error = quadratic(values.sub_(scaled).div_(scale), moments)
        return self.inputs.tokens * error / self.energy if self.energy else 0.0


def quadratic(errors: torch.Tensor, moments: torch.Tensor) -> float:
    """tr(E·H·Eᵀ), with H diagonal where only that is given."""
    if moments.ndim == 1:
        return float((errors.square() @ moments).sum(dtype=torch.float64))
    return float((errors @ moments).mul_(errors).sum(dtype=torch.float64))
