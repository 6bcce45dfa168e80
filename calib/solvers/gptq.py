"""GPTQ: weights rounded column by column, each rounding error taken up by the columns to come.

After Frantar et al. 2022 (arXiv 2210.17323), with what held-out errors showed to help: groups in
the order of their importance and columns inside them too; grids searched on the updated weights,
weighted by what each column's error will cost, and tried in whole sweeps; then passes of coordinate
descent over codes and scales; damping that follows the number of tokens. Rows are independent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from zenconvert.calib.solvers.curvature import Curvature, prepare
from zenconvert.calib.solvers.exact import CPU_ROWS, exact
from zenconvert.calib.solvers.gptq_rows import GptqRows
from zenconvert.calib.solvers.levels import Levels
from zenconvert.calib.solvers.rounded import Rounded, solved
from zenconvert.calib.solvers.rtn import rtn
from zenconvert.calib.solvers.solution import GptqSettings, ModuleReport, Solved, keep
from zenconvert.model.target import Scheme

_LARGEST_GROUP: Final = 1024  # searched on the way; grids of larger ones are fixed first
_CHUNK_ELEMENTS: Final = 1 << 29


def gptq(
    weight: torch.Tensor,
    scheme: Scheme,
    moments: torch.Tensor | Curvature,
    tokens: int,
    *,
    settings: GptqSettings | None = None,
) -> Solved:
    """Quantize one linear to the least error on its inputs.

    Args:
        weight: float32[out, in], on any device.
        scheme: bits, group, kind of grid and order.
        moments: float32[in, in] on the same device, sum or mean of x·xᵀ over tokens; or what
            :func:`curvature_of` made of them for this scheme and these settings, which serves all
            linears with the same input.
        tokens: how many tokens the moments hold; with none, the weight is rounded to nearest.
        settings: the defaults are the recommendation.

    A result is never worse than rounding to nearest on the same data: rows that would be are taken
    from there, and the report says so, as it says every fallback.
    """
    settings = settings or GptqSettings()
    if not bool(weight.isfinite().all()):
        return keep("the weight is not finite")
    if tokens <= 0 and not isinstance(moments, Curvature):
        return _fall_back(weight, scheme, None, settings, "no token reached it")
    curvature = moments
    if not isinstance(curvature, Curvature):
        prepared = curvature_of(curvature, tokens, scheme, settings)
        if isinstance(prepared, str):
            return _fall_back(weight, scheme, curvature.diagonal(), settings, prepared)
        curvature = prepared
    rounded, report = quantize_rows(weight, scheme, curvature, settings)
    ordered = scheme.act_order and not settings.static_groups
    return solved(rounded, scheme, report, ordered=ordered)


def curvature_of(
    moments: torch.Tensor,
    tokens: int,
    scheme: Scheme,
    settings: GptqSettings,
    scales: torch.Tensor | None = None,
) -> Curvature | str:
    """Moments made ready for :func:`gptq`, or why they cannot be; they may be freed afterwards.

    ``scales`` float32[in] are what the inputs will be divided by (AWQ).
    """
    static = _static(scheme, settings)
    with exact(moments.device):
        return prepare(moments, tokens, scheme, settings.damping, static, scales)


def quantize_rows(
    weight: torch.Tensor, scheme: Scheme, curvature: Curvature, settings: GptqSettings
) -> tuple[Rounded, ModuleReport]:
    """The core of :func:`gptq`: everything stays on the device of the weight."""
    static = _static(scheme, settings)
    levels = Levels.of(scheme, settings.lowest_zero)
    make = GptqRows.fixed if static else GptqRows.searched

    def solve(rows: torch.Tensor) -> tuple[Rounded, torch.Tensor, int]:
        work = make(rows.float(), scheme, curvature, levels)
        work.round_columns()
        for _ in range(settings.passes):
            work.descend()
        return work.finish()

    count = CPU_ROWS if weight.device.type == "cpu" else _CHUNK_ELEMENTS // weight.shape[1]
    with exact(weight.device) as run:
        parts = run(solve, torch.split(weight, max(1, count)))
    replaced = sum(part[2] for part in parts)
    errors = torch.stack([part[1] for part in parts]).sum(0)
    error, rtn_error, energy = errors.tolist()
    notes = curvature.notes
    if replaced:
        notes += (
            f"{replaced} of {len(weight)} rows are rounded to nearest, which is better there",
        )
    report = ModuleReport(
        "gptq" if replaced < len(weight) else "rtn",
        error / energy if energy else 0.0,
        rtn_error / energy if energy else 0.0,
        damping=curvature.damping,
        rank=curvature.rank,
        notes=notes,
    )
    return Rounded.stack([part[0] for part in parts]), report


def _static(scheme: Scheme, settings: GptqSettings) -> bool:
    """Whether grids are fixed before the first column is rounded."""
    return settings.static_groups or scheme.group is None or scheme.group > _LARGEST_GROUP


def _fall_back(
    weight: torch.Tensor,
    scheme: Scheme,
    importance: torch.Tensor | None,
    settings: GptqSettings,
    why: str,
) -> Solved:
    result = rtn(weight, scheme, importance=importance, lowest_zero=settings.lowest_zero)
    report = replace(result.report, notes=(f"rounded to nearest: {why}", *result.report.notes))
    return Solved(result.values, report)
