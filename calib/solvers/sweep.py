"""The sequential part of GPTQ: columns of a panel rounded one after the other, with feedback.

Every column is rounded to its grid; the rounding error then moves the targets of the columns that
follow: ``target[:, k] += (start[:, j] - value[:, j]) * feedback[j, k]`` for ``k > j``. With the
unit upper factor of the second moments as feedback that is GPTQ (Frantar et al. 2022, in the form
of QuIP's LDLQ, which needs no inverse); with the second moments over their diagonal it is one pass
of coordinate descent. Rows are independent.
"""

from __future__ import annotations

from typing import Final

import torch

from zenconvert.calib.solvers.grid import fused_kernels, quantize

PANEL: Final = 128
"""Columns that are rounded between two matrix products."""


def sweep(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> torch.Tensor:
    """Round the columns of a panel in turn.

    Args:
        target: float32[rows, columns], what the columns should be before any feedback; at most
            :data:`PANEL` columns. Left as it is.
        start: float32[rows, columns]; what is added to the feedback is its distance from the value.
        feedback: float32[columns, columns], zero on and below the diagonal.
        scale: float32[rows, columns] or [rows, 1].
        zero: like ``scale``.
        top: the largest code.

    Returns the values on the grid, float32[rows, columns].
    """
    if target.is_cuda and (kernels := fused_kernels()) is not None:
        swept: torch.Tensor = kernels.sweep_rows(target, start, feedback, scale, zero, top)
        return swept
    return _settle(target, start, feedback, scale, zero, top)[0]


def trials(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> torch.Tensor:
    """What each of several scales would cost after a whole sweep.

    As :func:`sweep`, with ``scales`` float32[trials, rows], ``zero`` float32[rows] and ``weight``
    float32[columns] of the squared distances between the targets and the values.

    Returns costs float32[trials, rows].
    """
    if target.is_cuda and (kernels := fused_kernels()) is not None:
        found: torch.Tensor = kernels.trial_rows(target, start, feedback, weight, scales, zero, top)
        return found
    costs = torch.empty_like(scales)
    for trial, scale in enumerate(scales):
        grid = (scale[:, None], zero[:, None])
        values, settled = _settle(target, start, feedback, *grid, top)
        costs[trial] = settled.sub_(values).square_() @ weight
    return costs


def _settle(
    target: torch.Tensor,
    start: torch.Tensor,
    feedback: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and the targets that they were rounded from."""
    if target.device.type == "cpu":
        from zenconvert.calib.solvers.host_kernels import settle

        return settle(target, start, feedback, scale, zero, top)
    # columns lie in rows meanwhile
    targets, starts = target.T.clone(memory_format=torch.contiguous_format), start.T
    scales, zeros = (grid.T.contiguous().expand_as(targets) for grid in (scale, zero))
    values = torch.empty_like(targets)
    for j in range(len(targets)):
        values[j] = quantize(targets[j], scales[j], zeros[j], top)
        if j + 1 < len(targets):
            targets[j + 1 :].addr_(feedback[j, j + 1 :], starts[j] - values[j])
    return values.T, targets.T
