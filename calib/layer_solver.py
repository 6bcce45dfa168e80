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
        shared: _Shared | None = None
        for module in layer.modules:
            name = f"{module}.weight"
            if name not in self.grids:
                continue
            grid, statistics, weight = self.grids[name], layer.of(module), layer.weight(name)
            scheme = grid if isinstance(grid, Scheme) else None
            if shared is None or shared.key != (statistics.name, scheme):
                shared = None  # one at a time: they are as large as the moments
                shared = _Shared(statistics, scheme, weight.device)
            found.quantized[name] = shared.solved(weight, grid)
        return found


class _Shared:
    """What modules with one input and one kind of grid share."""

    def __init__(
        self, statistics: InputStatistics, scheme: Scheme | None, device: torch.device
    ) -> None:
        """``scheme`` is None for encodings with grids of their own."""
        from zenconvert.calib.solvers.gptq import curvature_of
        from zenconvert.calib.solvers.nested import nested_curvature
        from zenconvert.calib.solvers.solution import GptqSettings

        assert statistics.moments is not None  # whoever gives layers to solvers gathers them
        self.key, self.statistics = (statistics.name, scheme), statistics
        moments, count = statistics.moments.to(device), statistics.count
        if scheme is None:
            self.nested = nested_curvature(moments, count)
            return
        curvature = curvature_of(moments, count, scheme, GptqSettings()) if count else ""
        # moments that cannot be factored go in as they are: gptq says what it did instead
        self.given = moments if isinstance(curvature, str) else curvature

    def solved(self, weight: torch.Tensor, grid: Grid) -> Solved | Filled:
        """One of the modules."""
        from zenconvert.calib.solvers.gptq import gptq
        from zenconvert.calib.solvers.nested import nested_gptq

        if isinstance(grid, Scheme):
            return gptq(weight, grid, self.given, self.statistics.count)
        return nested_gptq(weight, grid, self.nested, self.statistics.importance())


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
