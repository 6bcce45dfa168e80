"""Solvers over one layer: its statistics and weights in, quantized weights out.

A layer may come in several parts with disjoint inputs (:mod:`zenconvert.calib.walk`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from numpy.typing import NDArray

from zenconvert.calib.inputs import layer_inputs
from zenconvert.calib.solution import Solved
from zenconvert.checkpoint import Checkpoint
from zenconvert.target import Scheme

if TYPE_CHECKING:
    import torch

    from zenconvert.calib.reference import Reference
    from zenconvert.calib.statistics import InputStatistics
    from zenconvert.calib.statistics_reader import Statistics


class Layer(Protocol):
    """Statistics and weights of one layer, or of a part of it."""

    @property
    def modules(self) -> tuple[str, ...]: ...

    def of(self, module: str) -> InputStatistics: ...

    def weight(self, tensor: str) -> torch.Tensor: ...


class FileLayer:
    """A layer whose statistics lie in a file."""

    def __init__(self, layer: int, statistics: Statistics, reference: Reference) -> None:
        self.statistics, self.reference = statistics, reference
        self.inputs = layer_inputs(reference.checkpoint.architecture, reference.by_layer[layer])
        self._last: InputStatistics | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Neutral names of all modules that have statistics."""
        return tuple(module for item in self.inputs for module in item.modules)

    def of(self, module: str) -> InputStatistics:
        """Statistics with second moments; those of one input are kept for its other modules."""
        if self._last is None or module not in self._last.modules:
            self._last = None  # one set of moments at a time
            self._last = self.statistics.of(module, moments=True)
        return self._last

    def weight(self, tensor: str) -> torch.Tensor:
        """A tensor of the model, float32 on the reference's device."""
        return self.reference.load(tensor).to(self.reference.device)


class LayerSolver(Protocol):
    """Takes the parts of one layer and gives its solution."""

    def add(self, layer: Layer) -> dict[str, Solved]:
        """Solve what a part allows; weight name → what is solved already."""

    def finish(self) -> tuple[dict[str, Solved], dict[str, NDArray[Any]]]:
        """All quantized weights by name, and other tensors that changed."""


class GptqLayer:
    """Every module by itself, from the second moments of what it reads."""

    def __init__(self, checkpoint: Checkpoint, grids: Mapping[str, Scheme]) -> None:
        del checkpoint  # its weights are not changed
        self.grids = grids
        self.solved: dict[str, Solved] = {}

    def add(self, layer: Layer) -> dict[str, Solved]:
        """Solve for the modules of a part; those that read one input share its factors."""
        from zenconvert.calib.gptq import curvature_of, gptq
        from zenconvert.calib.solution import GptqSettings

        found: dict[str, Solved] = {}
        key, curvature = None, None
        for module in layer.modules:
            name = f"{module}.weight"
            if name not in self.grids:
                continue
            scheme, statistics, weight = self.grids[name], layer.of(module), layer.weight(name)
            assert statistics.moments is not None  # whoever gives layers to solvers gathers them
            moments = statistics.moments.to(weight.device)
            if key != (statistics.name, scheme):
                curvature = None  # one at a time: they are as large as the moments
                key = (statistics.name, scheme)
                if statistics.count:
                    curvature = curvature_of(moments, statistics.count, scheme, GptqSettings())
            # moments that cannot be factored go in as they are: gptq says what it did instead
            given = moments if curvature is None or isinstance(curvature, str) else curvature
            found[name] = gptq(weight, scheme, given, statistics.count)
        self.solved |= found
        return found

    def finish(self) -> tuple[dict[str, Solved], dict[str, NDArray[Any]]]:
        """All quantized weights."""
        return self.solved, {}


LAYER_SOLVERS: Final[dict[str, Callable[[Checkpoint, Mapping[str, Scheme]], LayerSolver]]] = {
    "gptq": GptqLayer
}
