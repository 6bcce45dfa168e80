"""Quantize with statistics, layer by layer: from a statistics file, or in a walk of its own.

Every solved layer goes to a :class:`~zenconvert.solved.SolvedStore` at once, so that a run that was
killed goes on where it was. What comes back is the source with the solved tensors over it, which
the ordinary conversion then writes, in any format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from zenconvert.calib.solution import ModuleReport, Solved
from zenconvert.checkpoint import Checkpoint
from zenconvert.errors import ConversionFailed, UsageError
from zenconvert.recoding import logical_rows
from zenconvert.solved import LayerSolution, SolvedStore
from zenconvert.target import Scheme

if TYPE_CHECKING:
    import torch

    from zenconvert.calib.layer import LayerStatistics
    from zenconvert.calib.selection import Selection
    from zenconvert.calib.statistics import InputStatistics
    from zenconvert.calib.statistics_reader import Statistics
    from zenconvert.calib.walk import Settings

Method = Literal["rtn", "gptq", "awq"]
METHODS: Final[tuple[Method, ...]] = ("rtn", "gptq", "awq")

Stage = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""


class View(Protocol):
    """Statistics and weights of one layer."""

    def of(self, module: str) -> InputStatistics: ...

    def weight(self, tensor: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Job:
    """What is to be solved for."""

    checkpoint: Checkpoint
    grids: Mapping[str, Scheme]
    """Neutral weight name → grid, of every weight that is quantized."""
    method: Method
    largest_error: float | None = None
    """Weighted relative error above which a module is a failure."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.checkpoint.hyperparameters.layers

    def of_layer(self, layer: int) -> dict[str, Scheme]:
        """The grids of one layer."""
        start = f"layers.{layer}."
        return {name: grid for name, grid in self.grids.items() if name.startswith(start)}


def from_statistics(
    job: Job, statistics: Statistics, store: SolvedStore, *, device: str, stage: Stage
) -> Checkpoint:
    """Solve every layer with the statistics of a file.

    Raises UsageError when the file does not hold what the method needs, and ConversionFailed when a
    module's error is above the job's bound.
    """
    from zenconvert.calib.reference import Reference

    reference = Reference(job.checkpoint, logical_rows, device=device)
    for layer in range(job.layers):
        if not store.has(layer):
            view = _FileView(statistics, reference)
            store.put(layer, _solve(job, view, job.of_layer(layer)))
        stage(job.method, layer + 1, job.layers)
    return _finished(job, store)


def from_walk(
    job: Job, selection: Selection, settings: Settings, store: SolvedStore, stage: Stage
) -> Checkpoint:
    """Solve every layer while the reference model walks over it. Raises as from_statistics."""
    from zenconvert.calib.reference import Reference
    from zenconvert.calib.walk import walk
    from zenconvert.calib.workspace import open_workspace

    sequential = settings.sequential != "off"
    done = () if sequential else [n for n in range(job.layers) if store.has(n)]
    identity = {"samples": selection.digest, "sequential": settings.sequential}
    reference = Reference(job.checkpoint, logical_rows, device=settings.device)
    with open_workspace(store.folder / "walk", identity) as workspace:
        parts = walk(reference, selection, settings, workspace=workspace, skip=done)
        quantized: dict[str, Solved] = {}
        for part in parts:
            if part.layer is None:
                continue
            solution = _solve(job, part, _covered(job, part))
            quantized |= solution.quantized
            if sequential:
                _replace(part, solution)
            if part.last:
                store.put(part.layer, replace(solution, quantized=quantized))
                quantized = {}
                stage(job.method, part.layer + 1, job.layers)
    return _finished(job, store)


class _FileView:
    """A layer whose statistics are in a file."""

    def __init__(self, statistics: Statistics, reference: Reference) -> None:
        self.statistics, self.reference = statistics, reference

    def of(self, module: str) -> InputStatistics:
        """Statistics with second moments."""
        return self.statistics.of(module, moments=True)

    def weight(self, tensor: str) -> torch.Tensor:
        """A tensor of the model, float32."""
        return self.reference.load(tensor).to(self.reference.device)


def _covered(job: Job, part: LayerStatistics) -> dict[str, Scheme]:
    """The grids of the modules that a part of a layer has statistics of."""
    names = [f"{module}.weight" for module in part.modules]
    return {name: job.grids[name] for name in names if name in job.grids}


def _solve(job: Job, view: View, grids: Mapping[str, Scheme]) -> LayerSolution:
    from zenconvert.calib.gptq import gptq

    quantized = {}
    for name, scheme in grids.items():
        found = view.of(name.removesuffix(".weight"))
        moments = found.moments
        if moments is None:
            raise UsageError(f"{name}: there are no second moments; calibrate for gptq")
        weight = view.weight(name)
        if found.weight:
            moments = moments.to(weight.device) / found.weight
        quantized[name] = gptq(weight, scheme, moments, found.count)
    return LayerSolution(quantized)


def _replace(part: LayerStatistics, solution: LayerSolution) -> None:
    """Let the walk go on with what will be written."""
    import torch

    for name, solved in solution.quantized.items():
        if solved.values is not None:
            part.replace(name, torch.from_numpy(solved.values.dequantize()))


def _finished(job: Job, store: SolvedStore) -> Checkpoint:
    """The source with the solved tensors over it, once every module is within its bound."""
    if job.largest_error is not None:
        reports = store.reports(job.layers)
        failed = [n for n, r in reports.items() if r.method == "keep" or r.error > job.largest_error]
        if failed:
            worst = max(failed, key=lambda name: reports[name].error)
            raise ConversionFailed(
                f"{len(failed)} modules have a weighted error above {job.largest_error:g}, the "
                f"worst is {worst} with {reports[worst].error:.3g} ({reports[worst].method}); "
                "use more bits or smaller groups, or leave it in floats with --tensor-type"
            )
    return store.over(job.checkpoint)
