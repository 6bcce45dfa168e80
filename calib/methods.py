"""The methods that find codes, by the name that ``--solver`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal

from zenconvert.model.target import Solver

if TYPE_CHECKING:
    from zenconvert.calib.layer_solver import LayerSolver
    from zenconvert.model.checkpoint import Checkpoint
    from zenconvert.model.layout import Grid


@dataclass(frozen=True, slots=True)
class Method:
    """One way to quantize weights."""

    maker: str | None = None
    """Class of :mod:`zenconvert.calib.layer_solver` that solves a layer; None where rows are
    rounded as they are written."""
    solves_head: bool = False
    """It takes the output head as one more linear, and the embedding where a walk back said what
    its errors cost."""
    step: Literal["stages", "layers"] = "stages"
    """What a sequential walk goes on after: a layer has several stages."""

    @property
    def needs_statistics(self) -> bool:
        """Whether it solves from what the weights read."""
        return self.maker is not None

    def layer_solver(self, checkpoint: Checkpoint, grids: Mapping[str, Grid]) -> LayerSolver:
        """What solves for the weights of ``grids``, layer by layer."""
        assert self.maker is not None
        maker = getattr(import_module("zenconvert.calib.layer_solver"), self.maker)
        found: LayerSolver = maker(checkpoint, grids)
        return found


METHODS: Final[dict[Solver, Method]] = {
    "rtn": Method(),
    "gptq": Method("GptqLayer", solves_head=True),
    "awq": Method("AwqLayer", step="layers"),
}
