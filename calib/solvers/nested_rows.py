"""The work of GPTQ on some rows of a nested grid: one pass over the columns, then descent.

The device of the weights multiplies matrices; what goes column by column is done by the host: in
the caller's thread where it is the device, too, and on all cores where there is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.calib.solvers.curvature import Curvature
from zenconvert.calib.solvers.nested_blocks import refit_blocks
from zenconvert.model.nested import NestedRows

if TYPE_CHECKING:
    from zenconvert.calib.solvers.nested_kernels import OverRows

_PANEL: Final = 256
"""Columns between two matrix products; whole blocks of every nested grid."""


@dataclass(frozen=True)
class Panel:
    """Some columns, and what their errors do to each other."""

    columns: slice
    feedback: NDArray[np.float32]
    """[columns, columns], zero on and below the diagonal."""
    moments: torch.Tensor
    """float32[columns, columns], damped."""
    moments_on_host: NDArray[np.float32]


def panels_of(curvature: Curvature) -> tuple[Panel, ...]:
    """The panels of all columns, in their order."""
    found, count = [], len(curvature.order)
    for begin in range(0, count, _PANEL):
        end = min(begin + _PANEL, count)
        feedback = curvature.matrix[begin:end, begin:end].triu(1)
        moments = curvature.block(begin, end)
        found.append(Panel(slice(begin, end), _host(feedback), moments, _host(moments)))
    return tuple(found)


def round_columns(
    weight: torch.Tensor, rows: NestedRows, curvature: Curvature, panels: tuple[Panel, ...]
) -> torch.Tensor:
    """GPTQ itself: codes on the grid that is there. Returns weight minus values."""
    from zenconvert.calib.solvers.nested_kernels import settle

    errors, each = torch.zeros_like(weight), threads_for(weight)
    for panel in panels:
        begin, end = panel.columns.start, panel.columns.stop
        start = weight[:, begin:end]
        target = start.addmm(errors[:, :begin], curvature.matrix[:begin, begin:end])
        part, lost = rows.columns(begin, end), np.empty(start.shape, np.float32)
        settle(_host(target), _host(start), panel.feedback, part, lost, each)
        rows.put_columns(begin, end, part)
        errors[:, begin:end] = torch.from_numpy(lost).to(weight.device)
    return errors


def descend(
    weight: torch.Tensor,
    rows: NestedRows,
    errors: torch.Tensor,
    curvature: Curvature,
    panels: tuple[Panel, ...],
) -> None:
    """One pass over all that can be chosen; rows and errors are brought up to date."""
    from zenconvert.calib.solvers.nested_kernels import descend as descend_groups

    each = threads_for(weight)
    for panel in panels:
        begin, end = panel.columns.start, panel.columns.stop
        gradient = _host(curvature.gradient(errors, begin, end))
        part = rows.columns(begin, end)
        values = part.dequantize()
        descend_groups(gradient, panel.moments_on_host, values, part, each)
        left, now = (torch.from_numpy(a).to(weight.device) for a in (gradient, values))
        refit_blocks(part, left, now, panel.moments)
        rows.put_columns(begin, end, part)
        errors[:, begin:end] = weight[:, begin:end] - now


def threads_for(weight: torch.Tensor) -> OverRows:
    """Who does the work of the host on rows."""
    from zenconvert.calib.solvers.host_kernels import over_rows

    return over_rows if weight.device.type != "cpu" else lambda count, work: work(slice(count))


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array
