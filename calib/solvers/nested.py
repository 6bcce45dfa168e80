"""GPTQ on grids whose scales are themselves quantized, such as ggml's K-quants.

The grid comes from the encoding's own search, weighted by the importance of the columns; its codes
are found anew, with the feedback of GPTQ (Frantar et al. 2022, arXiv 2210.17323), and then passes
of coordinate descent choose codes, scales, minimums, steps and offsets one after another, each as
the file will hold it. Columns keep the order of the file. Rows are independent.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.base.machine import usable_cores
from zenconvert.calib.solvers.curvature import Curvature, prepare
from zenconvert.calib.solvers.exact import CPU_ROWS, exact
from zenconvert.calib.solvers.nested_blocks import refit_blocks
from zenconvert.calib.solvers.solution import EncodedRows, Filled, GptqSettings, ModuleReport
from zenconvert.model.nested import NestedRows

if TYPE_CHECKING:
    from zenconvert.model.encoding import Encoding

_PANEL: Final = 256
_DEVICE_ROWS: Final = 2048
_DEVICE_WORKERS: Final = 4
"""Pieces of work at a time: while the device computes for one, the host does for the others."""


def nested_curvature(
    moments: torch.Tensor, tokens: int, settings: GptqSettings | None = None
) -> Curvature | str:
    """Moments made ready for :func:`nested_gptq`, or why they cannot be."""
    settings = settings or GptqSettings()
    with exact(moments.device):
        return prepare(moments, tokens, None, settings.damping, static=False)


def nested_gptq(
    weight: torch.Tensor,
    encoding: Encoding,
    curvature: Curvature | str,
    importance: NDArray[np.float32] | None,
    *,
    settings: GptqSettings | None = None,
) -> Filled:
    """Quantize one linear to the least error on its inputs.

    Args:
        weight: float32[out, in], on any device.
        encoding: what it will be stored in; one that does not lie on a nested grid is rounded.
        curvature: what :func:`nested_curvature` made of the second moments of its inputs.
        importance: float32[in] for the search of grids.
        settings: the defaults are the recommendation.

    Rows that rounding with the encoding's own search would give a smaller error are taken from
    there, and the report says so. Raises InvalidInput for weights that the encoding cannot hold.
    """
    settings = settings or GptqSettings()
    rounded = _encoded(encoding, weight.float().cpu().numpy(), importance)
    if isinstance(curvature, str) or encoding.nested_grid() is None:
        why = curvature if isinstance(curvature, str) else f"{encoding} has no codes to choose"
        report = _rounding(weight, encoding, rounded, curvature, (f"rounded: {why}",))
        return Filled(EncodedRows(encoding, rounded, weight.shape[1]), report)
    work = _Work(encoding, curvature, settings)
    count = CPU_ROWS if weight.device.type == "cpu" else _DEVICE_ROWS
    slices = [slice(at, at + count) for at in range(0, len(weight), count)]
    with exact(weight.device) as run, ThreadPoolExecutor(_DEVICE_WORKERS) as pool:
        each = run if weight.device.type == "cpu" else pool.map
        parts = list(each(lambda here: work.rows(weight[here], rounded[here]), slices))
    data = np.concatenate([part[0] for part in parts])
    ours, theirs, energy = np.sum([part[1] for part in parts], axis=0).tolist()
    notes, replaced = curvature.notes, sum(part[2] for part in parts)
    if replaced:
        notes += (f"{replaced} of {len(weight)} rows are rounded, which is better there",)
    report = ModuleReport(
        "gptq" if replaced < len(weight) else "rtn",
        ours / energy if energy else 0.0,
        theirs / energy if energy else 0.0,
        damping=curvature.damping,
        rank=curvature.rank,
        notes=notes,
    )
    return Filled(EncodedRows(encoding, data, weight.shape[1]), report)


def _encoded(
    encoding: Encoding, weight: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """The encoding's own rounding, u8[rows, row_bytes]."""
    parts = [weight[at : at + CPU_ROWS] for at in range(0, len(weight), CPU_ROWS)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        return np.concatenate(list(pool.map(lambda part: encoding.encode(part, importance), parts)))


def _rounding(
    weight: torch.Tensor,
    encoding: Encoding,
    rounded: NDArray[np.uint8],
    curvature: Curvature | str,
    notes: tuple[str, ...],
) -> ModuleReport:
    """How well rounding does; by the plain error where there are no second moments."""
    values = torch.from_numpy(encoding.decode(rounded, weight.shape[1])).to(weight.device)
    errors = weight - values
    if isinstance(curvature, str):
        lost, energy = (float(t.double().square().sum()) for t in (errors, weight))
    else:
        lost, energy = (float(curvature.quadratic(t).sum()) for t in (errors, weight))
    share = lost / energy if energy else 0.0
    return ModuleReport("rtn", share, share, notes=notes)


@dataclass(frozen=True)
class _Work:
    """What all rows of a weight share."""

    encoding: Encoding
    curvature: Curvature
    settings: GptqSettings

    def rows(
        self, weight: torch.Tensor, rounded: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], int]:
        """Bytes of some rows; errors of them, of rounding and of zeros; how many were replaced."""
        weight = weight.float()
        found = self.encoding.on_nested(rounded, weight.shape[1])
        errors = self._round(weight, found)
        for _ in range(self.settings.passes):
            self._descend(weight, found, errors)
        nearest = torch.from_numpy(self.encoding.decode(rounded, weight.shape[1]))
        lost = weight - nearest.to(weight.device)
        ours, theirs = self.curvature.quadratic(errors), self.curvature.quadratic(lost)
        data: NDArray[np.uint8] = self.encoding.of_nested(found)
        worse = ~(ours < theirs).cpu().numpy()
        data[worse] = rounded[worse]
        sums = (torch.minimum(ours, theirs), theirs, self.curvature.quadratic(weight))
        return data, np.array([float(s.sum()) for s in sums]), int(worse.sum())

    def _round(self, weight: torch.Tensor, found: NestedRows) -> torch.Tensor:
        """GPTQ itself; returns weight minus values."""
        from zenconvert.calib.solvers.nested_kernels import settle

        errors, feedback = torch.zeros_like(weight), self.curvature.matrix
        for begin, end in _panels(weight.shape[1]):
            start = weight[:, begin:end]
            target = start.addmm(errors[:, :begin], feedback[:begin, begin:end])
            panel = found.columns(begin, end)
            lost = np.empty(start.shape, np.float32)
            back = feedback[begin:end, begin:end].triu(1)
            settle(_host(target), _host(start), _host(back), panel, lost)
            found.put_columns(begin, end, panel)
            errors[:, begin:end] = torch.from_numpy(lost).to(weight.device)
        return errors

    def _descend(self, weight: torch.Tensor, found: NestedRows, errors: torch.Tensor) -> None:
        """One pass over all that can be chosen."""
        from zenconvert.calib.solvers.nested_kernels import descend

        for begin, end in _panels(weight.shape[1]):
            gradient = _host(self.curvature.gradient(errors, begin, end))
            moments = self.curvature.block(begin, end)
            panel = found.columns(begin, end)
            values = panel.dequantize()
            descend(gradient, _host(moments), values, panel)
            left, now = (torch.from_numpy(a).to(weight.device) for a in (gradient, values))
            refit_blocks(panel, left, now, moments)
            found.put_columns(begin, end, panel)
            errors[:, begin:end] = weight[:, begin:end] - now


def _panels(columns: int) -> list[tuple[int, int]]:
    return [(at, min(at + _PANEL, columns)) for at in range(0, columns, _PANEL)]


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.contiguous().cpu().numpy()
    return array
