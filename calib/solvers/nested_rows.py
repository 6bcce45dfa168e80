"""The work of GPTQ on some rows of a nested grid: one pass over the columns, then descent.

The device of the weights multiplies matrices and, where Triton is installed, goes from column to
column; otherwise the host does that: in the caller's thread where it is the device, too, and on
all cores where there is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.calib.solvers.curvature import Curvature
from zenconvert.calib.solvers.nested_blocks import refit_blocks
from zenconvert.calib.solvers.nested_tensors import NestedTensors

if TYPE_CHECKING:
    from zenconvert.calib.solvers.nested_kernels import OverRows

_PANEL: Final = 256
"""Columns between two matrix products; whole blocks of every nested grid."""


@dataclass(frozen=True)
class Panel:
    """Some columns, and what their errors do to each other."""

    columns: slice
    feedback: torch.Tensor
    """float32[columns, columns], zero on and below the diagonal."""
    moments: torch.Tensor
    """float32[columns, columns], damped."""

    @cached_property
    def on_host(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Feedback and moments."""
        return _host(self.feedback), _host(self.moments)


def panels_of(curvature: Curvature) -> tuple[Panel, ...]:
    """The panels of all columns, in their order."""
    found, count = [], len(curvature.order)
    for begin in range(0, count, _PANEL):
        end = min(begin + _PANEL, count)
        feedback = curvature.matrix[begin:end, begin:end].triu(1)
        found.append(Panel(slice(begin, end), feedback, curvature.block(begin, end)))
    return tuple(found)


def round_columns(
    weight: torch.Tensor, rows: NestedTensors, curvature: Curvature, panels: tuple[Panel, ...]
) -> torch.Tensor:
    """GPTQ itself: codes on the grid that is there. Returns weight minus values."""
    errors = torch.zeros_like(weight)
    for panel in panels:
        begin, end = panel.columns.start, panel.columns.stop
        start = weight[:, begin:end]
        target = start.addmm(errors[:, :begin], curvature.matrix[:begin, begin:end])
        part = rows.columns(begin, end)
        _settle(target, start, panel, part, errors[:, begin:end])
        rows.put_columns(begin, end, part)
    return errors


def descend(
    weight: torch.Tensor,
    rows: NestedTensors,
    errors: torch.Tensor,
    curvature: Curvature,
    panels: tuple[Panel, ...],
) -> None:
    """One pass over all that can be chosen; rows and errors are brought up to date."""
    for panel in panels:
        begin, end = panel.columns.start, panel.columns.stop
        gradient = curvature.gradient(errors, begin, end)
        part = rows.columns(begin, end)
        values = part.dequantize()
        _descend(gradient, panel, values, part)
        refit_blocks(part, gradient, values, panel.moments)
        rows.put_columns(begin, end, part)
        errors[:, begin:end] = weight[:, begin:end] - values


def _settle(
    target: torch.Tensor,
    start: torch.Tensor,
    panel: Panel,
    part: NestedTensors,
    errors: torch.Tensor,
) -> None:
    """Codes of a panel with feedback; ``errors`` are written."""
    fused = _fused_kernels() if target.is_cuda else None
    if fused is not None:
        fused.settle(target, start, panel.feedback, part, errors)
        return
    from zenconvert.calib.solvers.nested_kernels import settle

    rows, lost = part.on_host(), np.empty(start.shape, np.float32)
    settle(_host(target), _host(start), panel.on_host[0], rows, lost, threads_for(target))
    part.codes.copy_(torch.from_numpy(rows.codes))
    errors.copy_(torch.from_numpy(lost))


def _descend(
    gradient: torch.Tensor, panel: Panel, values: torch.Tensor, part: NestedTensors
) -> None:
    """Scales, minimums and codes of a panel; all but the panel are brought up to date."""
    fused = _fused_kernels() if gradient.is_cuda else None
    if fused is not None:
        fused.descend(gradient, panel.moments, values, part)
        return
    from zenconvert.calib.solvers.nested_kernels import descend

    rows, slope, now = part.on_host(), _host(gradient), _host(values)
    descend(slope, panel.on_host[1], now, rows, threads_for(gradient))
    part.put_columns(0, values.shape[1], NestedTensors.from_host(rows, values.device))
    gradient.copy_(torch.from_numpy(slope))
    values.copy_(torch.from_numpy(now))


@cache
def _fused_kernels() -> ModuleType | None:
    """The module of CUDA kernels, where Triton is installed."""
    if find_spec("triton") is None:
        return None
    return import_module("zenconvert.calib.solvers.nested_fused")


def threads_for(weight: torch.Tensor) -> OverRows:
    """Who does the work of the host on rows."""
    from zenconvert.calib.solvers.host_kernels import over_rows

    return over_rows if weight.device.type != "cpu" else lambda count, work: work(slice(count))


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array
