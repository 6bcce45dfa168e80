"""What a solver is told and returns: settings, the quantized weights, and how well it went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the solvers themselves need no more than torch
    import numpy as np
    from numpy.typing import NDArray

    from zenconvert.model.encoding import Encoding
    from zenconvert.model.grouped import GroupedRows


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows as an encoding stores them."""

    encoding: Encoding
    data: NDArray[np.uint8]
    """[rows, row_bytes]."""
    columns: int

    def dequantize(self) -> NDArray[np.float32]:
        """float32[rows, columns]."""
        values: NDArray[np.float32] = self.encoding.decode(self.data, self.columns)
        return values


@dataclass(frozen=True, slots=True)
class GptqSettings:
    """How :func:`zenconvert.calib.solvers.gptq.gptq` works."""

    damping: float | None = None
    """Share of a typical diagonal value to add to the second moments' diagonal; None: the fewer
    tokens there are for the inputs, the more."""
    passes: int = 2
    """Passes of coordinate descent over all codes and scales afterwards."""
    static_groups: bool = False
    """Fix the grids of all groups first, on the weights as they are, and then round columns in the
    order of their importance; otherwise grids are searched on the way and groups stay together."""
    lowest_zero: int = 0
    """Smallest zero of an asymmetric grid; GPTQ v1 files cannot hold 0."""


@dataclass(frozen=True, slots=True)
class AwqSettings:
    """How :func:`zenconvert.calib.solvers.awq.awq` works."""

    rounding: Literal["gptq", "rtn"] = "gptq"
    """What rounds the scaled weights; ``rtn`` is AWQ as published, with weighted scale search."""
    gptq: GptqSettings = GptqSettings()


@dataclass(frozen=True)
class ModuleReport:
    """How one module was quantized."""

    method: str
    """What produced the codes in the end: ``gptq``, ``awq``, ``rtn`` or ``keep``."""
    error: float
    """Weighted relative error: tr(ΔW·X·Xᵀ·ΔWᵀ) / tr(W·X·Xᵀ·Wᵀ). Of ``rtn`` on its own, with the
    importance in place of X·Xᵀ; 0 where the module is kept."""
    rtn_error: float
    """The same for rounding to nearest on the same grid."""
    damping: float = 0.0
    """Share of a typical diagonal value that was added to the second moments' diagonal."""
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


@dataclass(frozen=True)
class Filled:
    """Weights of one module as an encoding stores them."""

    values: EncodedRows
    report: ModuleReport


def keep(*notes: str) -> Solved:
    """A module that stays as it is, and why."""
    return Solved(None, ModuleReport("keep", 0.0, 0.0, notes=notes))
