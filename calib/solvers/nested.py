"""GPTQ on grids whose scales are themselves quantized, such as ggml's K-quants.

The grid comes from the encoding's own search, weighted by the importance of the columns; its codes
are found anew, with the feedback of GPTQ (Frantar et al. 2022, arXiv 2210.17323), and then passes
of coordinate descent choose codes, scales, minimums, steps and offsets one after another, each as
the file will hold it. Columns keep the order of the file. Rows are independent.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert.base.arrays import beside
from zenconvert.calib.solvers.curvature import Curvature, prepare
from zenconvert.calib.solvers.exact import exact
from zenconvert.calib.solvers.nested_rows import (
    Panel,
    descend,
    panels_of,
    round_columns,
    threads_for,
)
from zenconvert.calib.solvers.nested_tensors import NestedTensors
from zenconvert.calib.solvers.solution import EncodedRows, Filled, GptqSettings, ModuleReport

if TYPE_CHECKING:
    from zenconvert.model.encoding import Encoding

_CPU_ROWS: Final = 256
"""Rows of a piece of work."""
_DEVICE_NUMBERS: Final = 1 << 27
"""Numbers of a piece of work: some 2 GB on the device, and few launches for each."""
_FEWEST_ROWS: Final = 4096
_DEVICE_PIECES: Final = 3
"""Pieces at a time: the device computes for some while the host does for others."""


@dataclass(frozen=True)
class NestedCurvature:
    """What all linears with the same input share."""

    curvature: Curvature | None
    """None where there is nothing to solve with."""
    why: str = ""
    """Why there is none."""

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The columns in pieces."""
        return () if self.curvature is None else panels_of(self.curvature)

    def lost(self, errors: torch.Tensor) -> torch.Tensor:
        """What errors float32[rows, in] cost, float64[rows]; plain squares without moments."""
        if self.curvature is None:
            return errors.double().square().sum(1)
        return self.curvature.quadratic(errors)


def nested_curvature(
    moments: torch.Tensor | None, tokens: int, settings: GptqSettings | None = None
) -> NestedCurvature:
    """Second moments float32[in, in] of so many tokens made ready for :func:`nested_gptq`."""
    if moments is None or not tokens:
        return NestedCurvature(None, "no token reached it")
    settings = settings or GptqSettings()
    with exact(moments.device):
        found = prepare(moments, tokens, None, settings.damping, static=False)
    return NestedCurvature(None, found) if isinstance(found, str) else NestedCurvature(found)


def nested_gptq(
    weight: torch.Tensor,
    encoding: Encoding,
    curvature: NestedCurvature,
    importance: NDArray[np.float32] | None,
    *,
    settings: GptqSettings | None = None,
    plain: bool = False,
) -> Filled:
    """Quantize one linear to the least error on its inputs.

    Args:
        weight: float32[out, in], on any device.
        encoding: what it will be stored in; one that does not lie on a nested grid is rounded.
        curvature: what :func:`nested_curvature` made of the second moments of its inputs.
        importance: float32[in] for the search of grids.
        settings: the defaults are the recommendation.
        plain: compare with rounding without importance.

    Rows that rounding with the encoding's own search would give a smaller error are taken from
    there, and the report says so. Raises InvalidInput for weights that the encoding cannot hold.
    """
    work = _Work(encoding, importance, curvature, (settings or GptqSettings()).passes, plain)
    count = _CPU_ROWS
    if weight.device.type != "cpu":
        count = max(_FEWEST_ROWS, _DEVICE_NUMBERS // weight.shape[1])
    slices = [slice(at, at + count) for at in range(0, len(weight), count)]
    assert curvature.panels or not work.is_solved  # made before threads share them
    with exact(weight.device) as run, ThreadPoolExecutor(_DEVICE_PIECES) as pool:
        each = run if weight.device.type == "cpu" else pool.map
        parts = list(each(lambda here: work.rows(weight[here].float()), slices))
    data = np.concatenate([part[0] for part in parts])
    ours, theirs, whole = np.sum([part[1] for part in parts], axis=0).tolist()
    replaced, found = sum(part[2] for part in parts), curvature.curvature
    notes = work.notes
    if work.is_solved and replaced:
        notes += (f"{replaced} of {len(weight)} rows are rounded, which is better there",)
    report = ModuleReport(
        "gptq" if work.is_solved and replaced < len(weight) else "rtn",
        ours / whole if whole else 0.0,
        theirs / whole if whole else 0.0,
        damping=found.damping if found is not None else 0.0,
        rank=found.rank if found is not None else None,
        notes=notes,
    )
    return Filled(EncodedRows(encoding, data, weight.shape[1]), report)


@dataclass(frozen=True)
class _Work:
    """What all rows of a weight share."""

    encoding: Encoding
    importance: NDArray[np.float32] | None
    shared: NestedCurvature
    passes: int
    plain: bool = False

    @property
    def is_solved(self) -> bool:
        """Whether there are codes to choose, and something to choose them by."""
        return self.shared.curvature is not None and self.encoding.nested_grid() is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about it."""
        if self.shared.curvature is None:
            return (f"rounded: {self.shared.why}",)
        if not self.is_solved:
            return (f"rounded: {self.encoding} has no codes to choose",)
        return self.shared.curvature.notes

    def rows(self, weight: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float64], int]:
        """Bytes of some rows; errors of them, of rounding and of zeros; how many are rounded."""
        rounded = self._rounded(weight, self.importance)
        usual = self._rounded(weight, None) if self.plain else rounded
        data, ours, before = self._solved(weight, rounded)
        theirs = self._lost(weight, usual) if self.plain or before is None else before
        taken = ~(ours <= theirs)
        data = torch.where(taken[:, None], usual, data)
        lost = (torch.where(taken, theirs, ours), theirs, self.shared.lost(weight))
        return data.cpu().numpy(), np.array([float(one.sum()) for one in lost]), int(taken.sum())

    def _lost(self, weight: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """What rows lose that are stored as ``data``, float64[rows]."""
        return self.shared.lost(weight - self.encoding.decode(data, weight.shape[1]))

    def _rounded(
        self, weight: torch.Tensor, importance: NDArray[np.float32] | None
    ) -> torch.Tensor:
        """The encoding's own rounding, u8[rows, row_bytes]: of the device, where it can."""
        if self.encoding.encodes_on(weight.device.type):
            there = None if importance is None else beside(importance, weight)
            found: torch.Tensor = self.encoding.encode(weight, there)
            return found
        values, columns = weight.cpu().numpy(), weight.shape[1]
        data = np.empty((len(weight), self.encoding.row_bytes(columns)), np.uint8)

        def work(part: slice) -> None:
            data[part] = self.encoding.encode(values[part], importance)

        threads_for(weight)(len(weight), work)
        return torch.from_numpy(data).to(weight.device)

    def _solved(
        self, weight: torch.Tensor, rounded: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Bytes, what every row loses, and what it lost as it was rounded, where that is known."""
        curvature, panels = self.shared.curvature, self.shared.panels
        if curvature is None:  # nothing to prefer it by
            infinite = torch.full((len(weight),), torch.inf, dtype=torch.float64)
            return rounded, infinite.to(weight.device), None
        if not self.is_solved:
            return rounded, self._lost(weight, rounded), None
        found = NestedTensors.of(self.encoding.on_nested(rounded, weight.shape[1]))
        before = self.shared.lost(weight - found.dequantize())
        errors = round_columns(weight, found, curvature, panels)
        for _ in range(self.passes):
            descend(weight, found, errors, curvature, panels)
        return self.encoding.of_nested(found.to_nested()), self.shared.lost(errors), before
