"""AWQ for one decoder block: channel scales, folded exactly into its other weights, then rounding.

A scale divides what a norm or linear (``smooth``) puts out and multiplies what linears (``into``)
take in. Where something in between keeps its dtype, scales are chosen so that nothing is lost:
powers of two, or the quotient of a stored norm or bias before and after. A router is folded and
never quantized; experts without tokens still get their scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from zenconvert.calib.solvers.curvature import Curvature
from zenconvert.calib.solvers.exact import exact
from zenconvert.calib.solvers.gptq import curvature_of, gptq
from zenconvert.calib.solvers.rtn import rtn
from zenconvert.calib.solvers.smoothing import Heads, Inputs, Reader, quadratic, search_scales
from zenconvert.calib.solvers.solution import AwqSettings, Solved, keep
from zenconvert.errors import ConversionFailed
from zenconvert.model.target import Scheme

_MOST_DRIFT: Final = 1e-5  # a few float32 roundings


@dataclass(frozen=True, slots=True)
class Balance:
    """Channels that may be scaled, by the names of the weights on both sides."""

    smooth: str
    """A norm, or a linear whose rows are the channels."""
    into: tuple[str, ...]
    heads: Heads | None = None
    """Where ``smooth`` is a value projection and ``into`` the output projection."""
    one_plus: bool = False
    """``smooth`` is a norm that multiplies by 1 + its weight."""


@dataclass(frozen=True, eq=False)
class Awq:
    """One block after AWQ."""

    scales: dict[str, torch.Tensor]
    """``smooth`` → float32[channels] that its outputs are divided by."""
    dense: dict[str, torch.Tensor]
    """Folded weights and biases (``NAME.bias``) that are not quantized, as float32 numbers of their
    dtype: norms, routers, biases, and linears that could not be quantized."""
    solved: dict[str, Solved]
    """Quantized linears; their errors are relative to the unscaled weights' outputs."""
    drift: float
    """Largest relative change that folding alone makes to any product of both sides."""


def awq(
    weights: Mapping[str, torch.Tensor],
    biases: Mapping[str, torch.Tensor],
    balances: Sequence[Balance],
    inputs: Mapping[str, Inputs],
    schemes: Mapping[str, Scheme],
    *,
    dtype: torch.dtype,
    settings: AwqSettings | None = None,
) -> Awq:
    """Scale, fold and quantize the linears of one decoder block.

    Args:
        weights: name → float32, norms [channels] and linears [out, in], all on one device.
        biases: name of its linear → float32[out].
        balances: what may be scaled, in the order of the block.
        inputs: name → what is known of its inputs, for every linear in ``schemes``.
        schemes: name → grid of the linears to quantize; others (a router) are only folded.
        dtype: what norms, biases and other dense weights are stored in.
        settings: the defaults are the recommendation.

    Raises ConversionFailed when folding would change what the model computes.
    """
    settings = settings or AwqSettings()
    finite = [name for name in schemes if bool(weights[name].isfinite().all())]
    block = _Block(dict(weights), dict(biases), frozenset(finite), dtype)
    device = next(iter(block.weights.values())).device
    with exact(device):
        scales = _scale_and_fold(block, balances, inputs, schemes)
        solved = {name: keep("the weight is not finite") for name in schemes}
        solved |= _round(block, inputs, schemes, settings)
    for name, result in solved.items():
        if result.values is None and name in block.quantized:
            block.dense.add(name)
    dense = {name: block.weights[name] for name in block.dense}
    dense |= {f"{name}.bias": block.biases[name] for name in scales if name in block.biases}
    return Awq(scales, dense, solved, block.drift)


def _scale_and_fold(
    block: _Block,
    balances: Sequence[Balance],
    inputs: Mapping[str, Inputs],
    schemes: Mapping[str, Scheme],
) -> dict[str, torch.Tensor]:
    """Search and fold the scales of every balance."""
    scales = {}
    for balance in balances:
        names = [name for name in balance.into if name in block.quantized]
        if names:
            readers = [Reader(block.weights[name], inputs[name], schemes[name]) for name in names]
            powers = block.needs_powers_of_two(balance)
            wanted = search_scales(readers, balance.heads, powers_of_two=powers)
            scales[balance.smooth] = block.fold(balance, wanted)
    if not block.drift <= _MOST_DRIFT:
        raise ConversionFailed(
            f"folding channel scales moved a weight by {block.drift:.3g} of its size, where "
            f"{_MOST_DRIFT} was expected at most; convert without AWQ"
        )
    return scales


class _Block:
    """The weights of a block while scales are folded into them."""

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        biases: dict[str, torch.Tensor],
        quantized: frozenset[str],
        dtype: torch.dtype,
    ) -> None:
        self.weights, self.biases, self.quantized = weights, biases, quantized
        self.dtype = dtype
        self.dense: set[str] = set()
        """What was folded and will be stored in ``dtype``."""
        self.input_scales: dict[str, torch.Tensor] = {}
        self.drift = 0.0

    def needs_powers_of_two(self, balance: Balance) -> bool:
        """Whether more is folded than one dense vector, which any other scale would round: a matrix
        that stays dense, or a norm with a bias."""
        linear = self.weights[balance.smooth].ndim == 2
        dense = linear and balance.smooth not in self.quantized
        both = not linear and balance.smooth in self.biases
        return not self.quantized.issuperset(balance.into) or dense or both

    def fold(self, balance: Balance, wanted: torch.Tensor) -> torch.Tensor:
        """Fold channel scales near those wanted (those, where they are powers of two); returns the
        scales folded, float32[channels]."""
        scale = self._exact(balance, wanted)
        self._divide(balance.smooth, scale, one_plus=balance.one_plus)
        full = scale if balance.heads is None else balance.heads.spread(scale)
        for name in balance.into:
            self.weights[name] = self.weights[name] * full
            self.input_scales[name] = full
            if name not in self.quantized:
                self.dense.add(name)
                self._check(self.weights[name], self._stored(self.weights[name]))
        return scale

    def _exact(self, balance: Balance, wanted: torch.Tensor) -> torch.Tensor:
        """Scales near those wanted that no dense tensor has to be rounded for."""
        smooth = self.weights[balance.smooth]
        linear = smooth.ndim == 2
        if self.needs_powers_of_two(balance):
            # 1 + w has no exact half, so nothing would do for the norm and for the dense matrix
            return torch.ones_like(wanted) if balance.one_plus else wanted
        vector = self.biases.get(balance.smooth) if linear else smooth
        if vector is None:
            return wanted
        one = 1.0 if balance.one_plus else 0.0
        vector = vector + one
        scale = vector / (self._stored(vector / wanted - one) + one)
        usable = scale.isfinite() & (scale > 0)
        # where there is nothing to divide, any scale is exact; a zero norm makes a dead channel
        return torch.where(usable, scale, wanted if linear else torch.ones_like(wanted))

    def _divide(self, name: str, scale: torch.Tensor, *, one_plus: bool) -> None:
        """Divide the outputs of a norm or linear."""
        before = self.weights[name]
        if before.ndim == 1:
            self.dense.add(name)
            one = 1.0 if one_plus else 0.0
            divided = self._stored((before + one) / scale - one)
            self.weights[name] = torch.where(scale == 1, before, divided)
            self._check(before + one, (self.weights[name] + one) * scale)
        else:
            self.weights[name] = before / scale[:, None]
            if name not in self.quantized:
                self.dense.add(name)
                self._check(self.weights[name], self._stored(self.weights[name]))
        if name in self.biases:
            bias = self.biases[name]
            self.biases[name] = self._stored(bias / scale)
            self._check(bias, self.biases[name] * scale)

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).float()

    def _check(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Remember how far two tensors differ that should be the same."""
        size = before.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        self.drift = max(self.drift, float((after - before).abs().max() / size))


def _round(
    block: _Block,
    inputs: Mapping[str, Inputs],
    schemes: Mapping[str, Scheme],
    settings: AwqSettings,
) -> dict[str, Solved]:
    """Quantize what is left after folding; neighbours with the same inputs share a curvature."""
    solved: dict[str, Solved] = {}
    shared: tuple[torch.Tensor, Scheme, Curvature | str] | None = None
    for name in (name for name in block.weights if name in block.quantized):
        given, weight, scheme = inputs[name], block.weights[name], schemes[name]
        scale = block.input_scales.get(name, torch.ones_like(weight[0]))
        if settings.rounding == "rtn" or given.moments.ndim == 1 or given.tokens <= 0:
            solved[name] = _nearest(weight, scheme, given, scale, settings)
            continue
        if shared is None or shared[0] is not given.moments or shared[1] != scheme:
            made = curvature_of(given.moments, given.tokens, scheme, settings.gptq, scale)
            shared = given.moments, scheme, made
        curvature = shared[2]
        if isinstance(curvature, str):
            solved[name] = _nearest(weight, scheme, given, scale, settings, curvature)
        else:
            result = gptq(weight, scheme, curvature, given.tokens, settings=settings.gptq)
            solved[name] = _told(result, f"scaled channels, rounded by {result.report.method}")
    return solved


def _nearest(
    weight: torch.Tensor,
    scheme: Scheme,
    given: Inputs,
    scale: torch.Tensor,
    settings: AwqSettings,
    why: str | None = None,
) -> Solved:
    """Rounding to nearest; its error over the second moments where they are known."""
    moments = given.moments
    importance = None
    if given.tokens > 0:
        importance = (moments if moments.ndim == 1 else moments.diagonal()) / scale.square()
    lowest = settings.gptq.lowest_zero
    result = rtn(weight, scheme, importance=importance, lowest_zero=lowest)
    if result.values is not None and given.tokens > 0:
        values = torch.from_numpy(result.values.dequantize()).to(weight.device)
        energy = quadratic(weight / scale, moments)
        share = quadratic((weight - values) / scale, moments) / energy if energy > 0 else 0.0
        report = replace(result.report, error=share, rtn_error=share)
        result = Solved(result.values, report)
    reason = why or ("no token reached it" if given.tokens <= 0 else None)
    told = "" if reason is None else f": {reason}"
    return _told(result, f"scaled channels, rounded to nearest{told}")


def _told(result: Solved, note: str) -> Solved:
    """The result as one of AWQ."""
    method = result.report.method if result.values is None else "awq"
    report = replace(result.report, method=method, notes=(note, *result.report.notes))
    return Solved(result.values, report)
