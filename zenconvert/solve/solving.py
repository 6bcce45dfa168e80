"""Quantize with statistics, layer by layer: from a statistics file, or in a walk of its own.

Every solved layer goes to a :class:`~zenconvert.solve.store.SolvedStore` at once, so that a run
that was killed goes on where it was. What comes back is the source with the solved tensors over
it, which the ordinary conversion then writes, in any format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenconvert.base.progress import Progress
from zenconvert.base.scratch import remove_scratch
from zenconvert.calib.back_plan import EMBEDDING
from zenconvert.calib.methods import METHODS
from zenconvert.calib.solvers.solution import ModuleReport
from zenconvert.errors import ConversionFailed, several
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.encoding import F32, Encoding
from zenconvert.model.layout import Grid
from zenconvert.model.target import Solver
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.fingerprint import fingerprint
from zenconvert.reference.inputs import HEAD
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.solve.store import LayerSolution, Part, SolvedStore
from zenconvert.version import __version__

if TYPE_CHECKING:
    from zenconvert.calib.layer import LayerStatistics
    from zenconvert.calib.layer_solver import Found, LayerSolver
    from zenconvert.calib.statistics import RowFisher
    from zenconvert.calib.statistics_reader import Statistics
    from zenconvert.calib.walk import Sequential, WalkSettings
    from zenconvert.calib.workspace import Workspace
    from zenconvert.reference.reference import Reference
    from zenconvert.texts.selection import Selection


@dataclass(frozen=True)
class SolveJob:
    """What is to be solved for."""

    checkpoint: Checkpoint
    grids: Mapping[str, Grid]
    """Neutral weight name → grid, of every weight that is quantized."""
    solver: Solver
    device: str = "cpu"
    largest_error: float | None = None
    """Weighted relative error above which a module is a failure."""
    fisher: bool = False
    """A walk back says what errors of the embedding cost."""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.checkpoint.hyperparameters.layers

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is solved for: the embedding, the number of every layer, and None for the output
        head."""
        head = METHODS[self.solver].solves_head and f"{HEAD}.weight" in self.grids
        embedding = (EMBEDDING,) * (self.embedding is not None)
        return (*embedding, *range(self.layers), *((None,) if head else ()))

    @property
    def embedding(self) -> Encoding | None:
        """What the embedding is stored in; None where it is not solved for."""
        grid = self.grids.get(f"{EMBEDDING}.weight")
        solves = self.fisher and METHODS[self.solver].solves_head
        return grid if solves and isinstance(grid, Encoding) else None

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides what comes out, beside the statistics."""
        return {
            "version": __version__,
            "model": fingerprint(self.checkpoint, logical_rows),
            "grids": {n: str(grid) for n, grid in self.grids.items() if self._is_solved(n)},
            "solver": self.solver,
            "device": self.device,
        }

    def _is_solved(self, name: str) -> bool:
        if name == f"{EMBEDDING}.weight":
            return self.embedding is not None
        return name.startswith("layers.") or (name == f"{HEAD}.weight" and None in self.parts)

    def layer_solver(self) -> LayerSolver:
        """The solver of single layers."""
        return METHODS[self.solver].layer_solver(self.checkpoint, self.grids)


@contextmanager
def solved(
    job: SolveJob, source: Statistics | Calibrating, folder: Path, stage: Progress
) -> Iterator[tuple[Checkpoint, dict[str, ModuleReport]]]:
    """Solve every layer and, where the method can, the head; gives the source with the solved
    tensors over it, and every report.

    ``folder`` keeps what is done while it lasts; it goes when the block ends without an error, and
    after one the next run of the same job goes on from it. Raises UsageError when the statistics do
    not hold what the solver needs, ConversionFailed when a module's error is above the job's bound,
    and the errors of reading samples and of running the model.
    """
    from zenconvert.calib.feeding import feed
    from zenconvert.calib.workspace import open_workspace
    from zenconvert.reference.reference import Reference

    reference = Reference(job.checkpoint, logical_rows, device=job.device)
    if isinstance(source, Calibrating):
        selection = source.selection(job.checkpoint)
        settings = walk_settings(source, job.device, job.solver)
        with open_solving(job, selection, settings, folder, stage) as solving:
            if job.embedding is not None and not solving.store.has(EMBEDDING):
                fisher = _walked_back(job, source, selection, folder, stage)
                solve_embedding(job, fisher, reference, solving.store)
            feed([solving], reference, selection, settings, workspace=solving.workspace)
            yield finished(job, solving.store)
    else:
        facts = {name: source.facts.get(name) for name in ("samples", "fisher")}
        with open_workspace(folder, {**job.facts, "statistics": facts}):
            store = SolvedStore(folder)
            _read(job, source, reference, store, stage)
            yield finished(job, store)
    remove_scratch(folder)


def _walked_back(
    job: SolveJob, calibrating: Calibrating, selection: Selection, folder: Path, stage: Progress
) -> RowFisher:
    """What a walk back over the texts says of the embedding; its file stays in ``folder``."""
    from zenconvert.calib.statistics_reader import open_statistics
    from zenconvert.solve.calibration import statistics_run

    settings = calibrating.settings(job.device, moments=False)
    run = statistics_run(job.checkpoint, calibrating, selection, settings, inputs=False)
    out = folder / "fisher.stats"
    if not run.is_written(out):
        run.check_disk(out, None)
        run.run(out, progress=lambda at: stage(at.stage, at.layers - at.layer, at.layers))
    return open_statistics(out).fisher()


def solve_embedding(
    job: SolveJob, fisher: RowFisher, reference: Reference, store: SolvedStore
) -> None:
    """Solve for the embedding, and keep it. Raises InvalidInput for numbers its encoding cannot
    hold."""
    from zenconvert.calib.solvers.embedding import embedding_rows

    assert job.embedding is not None
    name = f"{EMBEDDING}.weight"
    weight = reference.load(name).to(reference.device)
    store.put(EMBEDDING, LayerSolution({name: embedding_rows(weight, job.embedding, fisher)}))


def walk_settings(calibrating: Calibrating, device: str, solver: Solver) -> WalkSettings:
    """How a walk computes that feeds a solver."""
    step: Sequential = METHODS[solver].step if calibrating.sequential else "off"
    return calibrating.settings(device, moments=True, sequential=step)


@contextmanager
def open_solving(
    job: SolveJob, selection: Selection, settings: WalkSettings, folder: Path, stage: Progress
) -> Iterator[Solving]:
    """Who takes the parts of a walk with ``settings``.

    ``folder`` keeps what is done; what another job left in it goes. Raises as ``open_workspace``.
    """
    from zenconvert.calib.workspace import open_workspace

    with open_workspace(folder, identity(job, selection, settings)) as workspace:
        yield Solving(job, workspace, stage, sequential=settings.sequential != "off")


def identity(job: SolveJob, selection: Selection, settings: WalkSettings) -> dict[str, Any]:
    """All that decides what comes out of a walk."""
    deciding = replace(settings, max_vram=None, max_ram=None)
    return {**job.facts, "samples": selection.digest, "settings": repr(deciding)}


def _read(
    job: SolveJob, statistics: Statistics, reference: Reference, store: SolvedStore, stage: Progress
) -> None:
    """Solve with the statistics of a file."""
    from zenconvert.calib.layer_solver import FileLayer

    for number, layer in enumerate(job.parts, 1):
        if isinstance(layer, str) and not store.has(layer):
            solve_embedding(job, statistics.fisher(), reference, store)
        elif not isinstance(layer, str) and not store.has(layer):
            found = job.layer_solver().add(FileLayer(layer, statistics, reference))
            store.put(layer, _solution(job, found))
        stage(job.solver, number, len(job.parts))


class Solving:
    """Solves the layers of a walk for one job; made by :func:`open_solving`."""

    def __init__(
        self, job: SolveJob, workspace: Workspace, stage: Progress, *, sequential: bool
    ) -> None:
        self.job, self.workspace = job, workspace
        self.stage, self.sequential = stage, sequential
        self.store = SolvedStore(workspace.folder)
        self.solver, self.solution = job.layer_solver(), LayerSolution()

    def has(self, layer: int | None) -> bool:
        """Whether there is nothing to solve in a layer, or it is solved."""
        return layer not in self.job.parts or self.store.has(layer)

    def take(self, part: LayerStatistics) -> None:
        """Solve for the modules of a part, and keep the layer when it is the last."""
        if part.layer not in self.job.parts:
            return
        found = self.solver.add(part)
        self.solution |= _solution(self.job, found)
        if self.sequential and part.layer is not None:
            _replace(part, found)
        if part.last:
            self.store.put(part.layer, self.solution)
            self.solution = LayerSolution()
            parts = self.job.parts
            self.stage(self.job.solver, parts.index(part.layer) + 1, len(parts))


def _solution(job: SolveJob, found: Found) -> LayerSolution:
    """What is kept of a solved layer: changed tensors in the dtype that they are stored in."""
    changed = {}
    for name, values in found.changed.items():
        stored = job.checkpoint.tensors[name].encoding.dense or F32
        changed[name] = values.cpu().numpy().astype(stored.numpy)
    return LayerSolution(found.quantized, changed)


def _replace(part: LayerStatistics, found: Found) -> None:
    """Let the walk go on with the numbers that will be written."""
    import torch

    for name, values in found.changed.items():
        part.replace(name, values)
    for name, one in found.quantized.items():
        if one.values is not None:
            part.replace(name, torch.from_numpy(one.values.dequantize()))


def finished(job: SolveJob, store: SolvedStore) -> tuple[Checkpoint, dict[str, ModuleReport]]:
    """The source with the solved tensors over it, once every module is within its bound.

    Raises ConversionFailed where one is not.
    """
    reports = store.reports(job.parts)
    bound = job.largest_error
    if bound is not None:
        failed = [n for n, r in reports.items() if r.method == "keep" or not r.error <= bound]
        if failed:
            worst = max(failed, key=lambda name: reports[name].error)
            raise ConversionFailed(
                f"{several(len(failed), 'module has', 'modules have')} a weighted error above "
                f"{bound:g}, the worst is {worst} with {reports[worst].error:.3g} "
                f"({reports[worst].method}); use more bits or smaller groups, "
                "or leave them in floats with --tensor-type"
            )
    return store.over(job.checkpoint, job.parts), reports
