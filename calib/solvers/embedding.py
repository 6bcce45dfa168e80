"""Rows of the embedding, quantized to the least loss of the whole model.

A row is used as it is, so an error e in it costs ½·freq·eᵀ·F·e with F = E[g·gᵀ], g the gradient at
what the embedding gives: the same work as for a linear whose inputs have the moments F.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from zenconvert.calib.solvers.curvature import adaptive_damping
from zenconvert.calib.solvers.nested import nested_curvature, nested_gptq
from zenconvert.calib.solvers.solution import Filled, GptqSettings

if TYPE_CHECKING:
    import torch

    from zenconvert.calib.statistics import RowFisher
    from zenconvert.model.encoding import Encoding

_LEAST_DAMPING: Final = 0.1
"""Gradients of sampled labels are noisier than activations. Chosen on zen-nano among 0.01, 0.1 and
1, by the divergence on other texts."""
METHOD: Final = "fisher"


def embedding_rows(weight: torch.Tensor, encoding: Encoding, fisher: RowFisher) -> Filled:
    """Quantize the embedding.

    Args:
        weight: float32[vocabulary, hidden], on any device.
        encoding: what it will be stored in; where there are no codes to choose, its own search is
            given the diagonal of F.
        fisher: what errors cost.

    Rows that the usual rounding, without any importance, would give a smaller cost are taken from
    there. Raises as :func:`zenconvert.calib.solvers.nested.nested_gptq`.
    """
    damping = max(_LEAST_DAMPING, adaptive_damping(weight.shape[1], fisher.tokens))
    settings = GptqSettings(damping=damping)
    curvature = nested_curvature(fisher.moments.to(weight.device), fisher.tokens, settings)
    found = nested_gptq(
        weight, encoding, curvature, fisher.importance(), settings=settings, plain=True
    )
    report, notes = found.report, found.report.notes
    if fisher.dropped:
        notes += (f"{fisher.dropped} of {fisher.tokens} tokens had no finite gradients",)
    method = METHOD if report.error < report.rtn_error else "rtn"
    return replace(found, report=replace(report, method=method, notes=notes))
