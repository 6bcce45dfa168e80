"""Second moments of one input of a block, made fit for GPTQ: finite, damped, ordered and factored.

With H = X·Xᵀ over tokens, the error of a change ΔW is tr(ΔW·H·ΔWᵀ). H = R·Rᵀ with R upper
triangular turns it into ‖ΔW·R‖², which GPTQ minimises column by column; R over its diagonal is the
feedback. That is the Cholesky factor of H with rows and columns reversed, so neither an inverse nor
a second factorisation is needed. One matrix holds all: H below the diagonal, the feedback above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from zenconvert.calib.solvers.exact import exact
from zenconvert.model.target import Scheme

_BLOCK: Final = 1024
_LEAST_DAMPING: Final = 0.01
_MOST_DAMPING: Final = 1.0
_PROBES: Final = 16
_RETRIES: Final = 2  # with ten times the damping each, before float64


@dataclass(eq=False)
class Curvature:
    """Solved for one scheme; serves every linear that takes the same input."""

    order: torch.Tensor
    """int64[inputs]: the columns in the order in which they are rounded."""
    matrix: torch.Tensor
    """float32[inputs, inputs] in that order: undamped moments strictly below the diagonal, feedback
    strictly above it. Scaled by a power of two, so that the diagonal is near 1."""
    diagonal: torch.Tensor
    """float32[inputs]: of the undamped moments."""
    damped: torch.Tensor
    """float32[inputs]: the diagonal with damping; positive."""
    pivots: torch.Tensor
    """float32[inputs]: squared diagonal of R; a column's moment given all that come after it."""
    damping: float
    """Share of a typical diagonal value that was added to all."""
    rank: int
    """Estimated number of directions whose moments rise above the damping."""
    notes: tuple[str, ...]

    def gradient(self, errors: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """``errors @ damped H[:, begin:end]``: float32[rows, end - begin]."""
        result = errors[:, begin:end] @ self.block(begin, end)
        result.addmm_(errors[:, :begin], self.matrix[begin:end, :begin].T)
        return result.addmm_(errors[:, end:], self.matrix[end:, begin:end])

    def block(self, begin: int, end: int) -> torch.Tensor:
        """A diagonal block of the damped H, float32[n, n]."""
        lower = self.matrix[begin:end, begin:end].tril(-1)
        return lower + lower.T + torch.diag(self.damped[begin:end])

    def quadratic(self, errors: torch.Tensor) -> torch.Tensor:
        """``diag(errors @ undamped H @ errors.T)``: float64[rows] of float32[rows, inputs]."""
        total: torch.Tensor = (errors.square() @ self.diagonal).double()
        for begin, end in _blocks(len(self.order)):
            here = errors[:, begin:end]
            product = here @ self.matrix[begin:end, begin:end].tril(-1)
            product = product.addmm_(errors[:, end:], self.matrix[end:, begin:end])
            total += product.mul_(here).sum(1, dtype=torch.float64).mul_(2)
        return total.clamp(min=0)


def adaptive_damping(inputs: int, tokens: int) -> float:
    """The share of the diagonal to add: more where few tokens speak for many inputs.

    Fitted on moments of zen-nano from 300 to 68,000 tokens, by the error on other texts: with fewer
    tokens than inputs, damping near 0 makes GPTQ worse than rounding to nearest. With many tokens
    anything from 0.003 to 0.06 gives the same divergence.
    """
    share = 3.0 * float(inputs / max(1, tokens)) ** 2.5
    return min(_MOST_DAMPING, max(_LEAST_DAMPING, float(share)))


def prepare(
    moments: torch.Tensor,
    tokens: int,
    scheme: Scheme | None,
    damping: float | None,
    static: bool,
    scales: torch.Tensor | None = None,
) -> Curvature | str:
    """Clean, order, damp and factor second moments.

    Args:
        moments: float32[inputs, inputs], sum or mean over tokens of x·xᵀ. Copied, not changed;
            a caller that needs them no more can free them afterwards.
        tokens: how many tokens they hold.
        scheme: decides the order of the columns; None keeps that of the weights.
        damping: share of a typical diagonal value to add; None for :func:`adaptive_damping`.
        static: groups are fixed before, and the columns may come in any order.
        scales: float32[inputs] that the inputs will be divided by.

    Returns the curvature, or why there is none.
    """
    inverse = torch.ones_like(moments[0], dtype=torch.float32) if scales is None else 1 / scales
    diagonal = moments.diagonal().float() * inverse.square()
    unusable = ~diagonal.isfinite() | (diagonal < 0)
    usable = torch.where(unusable, 0.0, diagonal)
    if not bool((usable > 0).any()):
        return "no second moments: no token with finite inputs reached it"
    notes = []
    unit = 2.0 ** -round(float(usable.double().mean().log2()))
    # a channel whose moments are lost counts as much as the largest, and as uncorrelated
    usable = torch.where(unusable, usable.max(), usable) * unit
    if count := int(unusable.sum()):
        notes.append(f"{count} input channels with unusable moments are taken as uncorrelated")
    if dead := int((usable == 0).sum()):
        notes.append(f"{dead} input channels are never active")
    order = torch.arange(len(usable), device=usable.device)
    if scheme is not None:
        order = column_order(usable, scheme, static)
    matrix = torch.empty_like(moments, dtype=torch.float32)
    for begin, end in _blocks(len(order)):
        rows = moments[order[begin:end]][:, order].float()
        rows.mul_(unit * inverse[order]).mul_(inverse[order[begin:end], None])
        rows[unusable[order[begin:end]]] = 0
        rows[:, unusable[order]] = 0
        if not bool(rows.isfinite().all()):
            return "the second moments are not finite between finite channels"
        matrix[begin:end] = rows
    share = adaptive_damping(len(order), tokens) if damping is None else damping
    return _factor(order, matrix, usable[order], share, notes, tokens)


def column_order(importance: torch.Tensor, scheme: Scheme, static: bool) -> torch.Tensor:
    """The order in which columns are rounded, int64[inputs]: important ones first, since the later
    ones take up their errors. Groups that are searched on the way stay together."""
    if scheme.act_order or static or scheme.group is None:
        return importance.argsort(descending=True, stable=True)
    groups = torch.arange(len(importance), device=importance.device) // scheme.group
    # sums in float64 and in a fixed order, whatever the device
    sums = torch.stack([part.double().sum() for part in torch.split(importance, scheme.group)])
    within = importance.argsort(descending=True, stable=True)
    rank_of_group = torch.empty_like(groups[: len(sums)])
    rank_of_group[sums.argsort(descending=True, stable=True)] = torch.arange(
        len(sums), device=groups.device
    )
    return within[rank_of_group[groups[within]].argsort(stable=True)]


def _factor(
    order: torch.Tensor,
    matrix: torch.Tensor,
    diagonal: torch.Tensor,
    damping: float,
    notes: list[str],
    tokens: int,
) -> Curvature | str:
    """Factor with more damping, then more precision, until it works."""
    typical = _typical(diagonal)
    tries = [(damping * 10**i, torch.float32) for i in range(_RETRIES + 1)]
    tries += [(damping * 10**i, torch.float64) for i in range(_RETRIES + 1)]
    for share, dtype in dict.fromkeys(tries):
        damped = diagonal + share * typical
        roots = _factor_upper(matrix, damped, dtype)
        if roots is not None:
            pivots = roots.square()
            rank = min(tokens, _rank(matrix, pivots, share * typical))
            return Curvature(order, matrix, diagonal, damped, pivots, share, rank, tuple(notes))
        notes.append(f"factorisation failed in {str(dtype)[6:]} with damping {share:.3g}")
        _mirror(matrix)
    return f"no factorisation of the second moments ({'; '.join(notes)})"


def _typical(diagonal: torch.Tensor) -> float:
    """The mean, with no value above ten times the median of the live ones: what suits the others
    must not depend on how large a huge channel is."""
    limit = 10 * float(diagonal[diagonal > 0].median())
    return float(diagonal.double().clamp(max=limit).mean())


def _rank(matrix: torch.Tensor, pivots: torch.Tensor, damping: float) -> int:
    """How many directions rise above the damping: the sum of eigenvalue / (eigenvalue + damping),
    from Hutchinson's estimate of the trace of the inverse."""
    size = len(pivots)
    random = torch.Generator().manual_seed(0)
    probes = torch.randint(0, 2, (size, _PROBES), generator=random).to(pivots) * 2 - 1
    for begin, end in reversed(list(_blocks(size))):
        here = probes[begin:end].addmm_(matrix[begin:end, end:], probes[end:], alpha=-1)
        square = matrix[begin:end, begin:end]
        here.copy_(torch.linalg.solve_triangular(square, here, upper=True, unitriangular=True))
    trace = float((probes.square() / pivots[:, None]).sum(dtype=torch.float64)) / _PROBES
    return max(0, min(size, round(size - damping * trace)))


def _factor_upper(
    matrix: torch.Tensor, damped: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """Write R over its own diagonal above the diagonal of ``matrix``.

    Blocked, left-looking, from the last block to the first: one large matrix product a block.
    Returns the diagonal of R, float32, or None when the matrix is not positive definite.
    """
    work = matrix if dtype == matrix.dtype else matrix.to(dtype)
    roots = torch.empty(len(damped), dtype=dtype, device=matrix.device)
    for begin, end in reversed(list(_blocks(len(damped)))):
        square = work[begin:end, begin:end].triu(1)
        square = square + square.T + torch.diag(damped[begin:end].to(dtype))
        square.addmm_(work[begin:end, end:], work[begin:end, end:].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(square.flip(0, 1))
        root = lower.flip(0, 1)
        roots[begin:end] = root.diagonal()
        if bool(failed) or not bool(roots[begin:end].isfinite().all()):
            return None
        _factor_above(work, begin, end, root)
        kept = work[begin:end, begin:end].tril()
        work[begin:end, begin:end] = root.triu(1) + kept
    for begin, end in _blocks(len(damped)):
        inverse = 1 / roots[begin:end]
        matrix[:begin, begin:end] = work[:begin, begin:end] * inverse
        square = (work[begin:end, begin:end] * inverse).triu(1)
        matrix[begin:end, begin:end] = matrix[begin:end, begin:end].tril() + square
    return roots.float()


def _factor_above(work: torch.Tensor, begin: int, end: int, root: torch.Tensor) -> None:
    """What is above a diagonal block whose factor is ``root``."""
    factored = work[begin:end, end:].T

    def piece(first: int) -> None:
        rows = slice(first, min(first + step, begin))
        above = work[rows, begin:end]
        above.addmm_(work[rows, end:], factored, alpha=-1)
        above.copy_(torch.linalg.solve_triangular(root.T, above, upper=False, left=False))

    step = _BLOCK if work.device.type == "cpu" else max(1, begin)
    with exact(work.device) as run:
        run(piece, range(0, begin, step))


def _mirror(matrix: torch.Tensor) -> None:
    """Copy what is below the diagonal above it."""
    for begin, end in _blocks(len(matrix)):
        matrix[begin:end, end:] = matrix[end:, begin:end].T
        lower = matrix[begin:end, begin:end].tril(-1)
        matrix[begin:end, begin:end] = lower + lower.T


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, size, _BLOCK):
        yield begin, min(begin + _BLOCK, size)
