"""Solvers over one layer: its statistics and weights in, quantized weights out.

A layer may come in several parts with disjoint inputs (:mod:`zenconvert.calib.walk`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from zenconvert.calib.layer import DTYPES
from zenconvert.calib.solvers.smoothing import Heads, Inputs
from zenconvert.calib.solvers.solution import Filled, Solved
from zenconvert.errors import NotEnoughResources
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Grid
from zenconvert.model.target import Scheme
from zenconvert.reference.inputs import Input, by_layer, head_input, layer_inputs

if TYPE_CHECKING:
    from zenconvert.calib.solvers.awq import Balance
    from zenconvert.calib.solvers.curvature import Curvature
    from zenconvert.calib.statistics import InputStatistics
    from zenconvert.calib.statistics_reader import Statistics
    from zenconvert.reference.reference import Reference


class Layer(Protocol):
    """Statistics and weights of one layer, or of a part of it."""

    @property
    def modules(self) -> tuple[str, ...]: ...

    def of(self, module: str) -> InputStatistics: ...

    def weight(self, tensor: str) -> torch.Tensor: ...


class FileLayer:
    """A layer whose statistics lie in a file."""

    def __init__(self, layer: int | None, statistics: Statistics, reference: Reference) -> None:
        """``layer`` None is the output head."""
        self.statistics, self.reference = statistics, reference
        checkpoint = reference.checkpoint
        self.inputs: tuple[Input, ...] = (head_input(checkpoint.hyperparameters),)
        if layer is not None:
            self.inputs = layer_inputs(checkpoint.architecture, reference.by_layer[layer])
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


@dataclass
class Found:
    """What a solver made of a layer or of a part of it."""

    quantized: dict[str, Solved | Filled] = field(default_factory=dict)
    """Weight name → codes and report."""
    changed: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tensor name → float32 numbers of the source's dtype, of tensors that are not quantized."""


class LayerSolver(Protocol):
    """Takes the parts of one layer."""

    def add(self, layer: Layer) -> Found:
        """Solve for the modules of a part."""


class GptqLayer:
    """Every module by itself, from the second moments of what it reads."""

    def __init__(self, checkpoint: Checkpoint, grids: Mapping[str, Grid]) -> None:
        del checkpoint  # its weights are not changed
        self.grids = grids

    def add(self, layer: Layer) -> Found:
        """Those that read one input share its factors."""
        found = Found()
        key: tuple[str, Scheme | None] | None = None
        curvature: Curvature | str = ""
        for module in layer.modules:
            name = f"{module}.weight"
            if name not in self.grids:
                continue
            grid, statistics, weight = self.grids[name], layer.of(module), layer.weight(name)
            assert statistics.moments is not None  # whoever gives layers to solvers gathers them
            order = grid if isinstance(grid, Scheme) else None
            if key != (statistics.name, order):
                curvature = ""  # one at a time: they are as large as the moments
                key = (statistics.name, order)
                curvature = _curvature(statistics, order, weight.device)
            found.quantized[name] = _solved(weight, grid, statistics, curvature)
        return found


def _curvature(
    statistics: InputStatistics, scheme: Scheme | None, device: torch.device
) -> Curvature | str:
    """What modules with one input and one grid share, or why there is nothing to share."""
    from zenconvert.calib.solvers.gptq import curvature_of
    from zenconvert.calib.solvers.nested import nested_curvature
    from zenconvert.calib.solvers.solution import GptqSettings

    assert statistics.moments is not None  # as the caller saw
    if not statistics.count:
        return "no token reached it"
    moments, count = statistics.moments.to(device), statistics.count
    if scheme is None:
        return nested_curvature(moments, count)
    return curvature_of(moments, count, scheme, GptqSettings())


def _solved(
    weight: torch.Tensor, grid: Grid, statistics: InputStatistics, curvature: Curvature | str
) -> Solved | Filled:
    from zenconvert.calib.solvers.gptq import gptq
    from zenconvert.calib.solvers.nested import nested_gptq

    if not isinstance(grid, Scheme):
        return nested_gptq(weight, grid, curvature, statistics.importance())
    if isinstance(curvature, str):  # gptq says what it did instead
        assert statistics.moments is not None  # as the caller saw
        return gptq(weight, grid, statistics.moments.to(weight.device), statistics.count)
    return gptq(weight, grid, curvature, statistics.count)


class AwqLayer:
    """All modules of a layer together: scales folded from one into the next, then rounding."""

    def __init__(self, checkpoint: Checkpoint, grids: Mapping[str, Grid]) -> None:
        self.checkpoint = checkpoint
        self.grids = {name: grid for name, grid in grids.items() if isinstance(grid, Scheme)}
        names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
        self.by_layer = by_layer(names)

    def add(self, layer: Layer) -> Found:
        """Raises NotEnoughResources when the layer comes in several parts."""
        from zenconvert.calib.solvers.awq import awq

        balances = self._balances(layer)
        scaled = [module for b in balances for module in (b.smooth, *b.into)]
        modules = dict.fromkeys([*scaled, *layer.modules])
        weights = {module: layer.weight(f"{module}.weight") for module in modules}
        biases = {
            module: layer.weight(f"{module}.bias")
            for module in modules
            if f"{module}.bias" in self.checkpoint.tensors
        }
        quantized = [module for module in modules if f"{module}.weight" in self.grids]
        first = balances[0].smooth if balances else layer.modules[0]
        stored = self.checkpoint.tensors[f"{first}.weight"].encoding
        result = awq(
            weights,
            biases,
            balances,
            self._inputs(layer, quantized, weights),
            {module: self.grids[f"{module}.weight"] for module in quantized},
            dtype=DTYPES.get(str(stored), torch.float32),
        )
        changed = {
            name if name.endswith(".bias") else f"{name}.weight": values
            for name, values in result.dense.items()
        }
        solved: dict[str, Solved | Filled] = {
            f"{module}.weight": one for module, one in result.solved.items()
        }
        return Found(solved, changed)

    def _balances(self, layer: Layer) -> list[Balance]:
        """The rows of the architecture's table that may be scaled in this layer, one for each
        expert."""
        from zenconvert.calib.solvers.awq import Balance

        hp, given = self.checkpoint.hyperparameters, set(layer.modules)
        number = int(layer.modules[0].split(".")[1])
        readers = [n for n in self.by_layer[number] if n.is_weight]
        found = []
        for row in self.checkpoint.architecture.balances:
            groups: dict[int | None, list[str]] = {}
            each = row.smooth is not None and "{expert}" in row.smooth
            for name in readers:
                if name.module.name in row.into:
                    module = name.name.removesuffix(".weight")
                    groups.setdefault(name.expert if each else None, []).append(module)
            for expert, into in groups.items():
                if not given.issuperset(into):
                    raise NotEnoughResources(
                        "AWQ needs the statistics of a whole layer at once, and its second moments "
                        "do not fit into memory together; give it more memory, or use gptq"
                    )
                if row.smooth is not None:
                    smooth = row.smooth.format(layer=number, expert=expert)
                    heads = Heads(hp.heads, hp.kv_heads) if row.kv_to_q else None
                    found.append(Balance(smooth, tuple(into), heads, row.one_plus))
        return found

    def _inputs(
        self, layer: Layer, modules: Sequence[str], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, Inputs]:
        """What is known of the inputs of every module; neighbours share theirs."""
        known: dict[str, Inputs] = {}
        for module in modules:
            statistics, device = layer.of(module), weights[module].device
            if statistics.name not in known:
                assert statistics.moments is not None  # as for GPTQ
                magnitudes = torch.from_numpy(statistics.mean_magnitudes()).to(device)
                known[statistics.name] = Inputs(
                    statistics.moments.to(device), magnitudes, statistics.count
                )
            known[module] = known[statistics.name]
        return known
