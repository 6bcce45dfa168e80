"""What a solver returns: the quantized weights of one module, and how well it went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zenconvert.grouped import GroupedRows


@dataclass(frozen=True)
class ModuleReport:
    """How one module was quantized."""

    method: str
    """What produced the codes in the end: ``gptq``, ``awq``, ``rtn`` or ``keep``."""
    error: float
    """Weighted relative error: tr(ΔW·X·Xᵀ·ΔWᵀ) / tr(W·X·Xᵀ·Wᵀ)."""
    rtn_error: float
    """The same for rounding to nearest on the same grid."""
    damping: float = 0.0
    """Share of the mean diagonal that was added to the second moments."""
    rank: int | None = None
    """Estimated rank of the second moments; None where it was not needed."""
    largest_scale: float = 0.0
    f16_headroom: float = 0.0
    """65504 / largest magnitude that the dequantized weights or scales reach."""
    notes: tuple[str, ...] = ()
    """Every fallback and oddity, in the order in which it happened."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Solved:
    """Quantized weights of one module; ``values`` is None where it stays at higher precision."""

    values: GroupedRows | None
    report: ModuleReport
