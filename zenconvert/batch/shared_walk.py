"""One walk over a model's layers for all variants of a production.

While a layer is there, its statistics go to a file, and every grid that some variant wants is
solved; then the layer and its second moments go. In the folder of a production stand::

    statistics.safetensors       what :func:`zenconvert.calibrate` would write
    SOLVER-DIGEST.solving/       solved layers (:mod:`zenconvert.solve.store`); variants that differ
                                 only in how they are packed share one
    walk/                        hidden states, as long as layers are missing
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zenconvert.base.machine import AUTO, take_device
from zenconvert.base.notes import make_folder
from zenconvert.base.progress import Progress, silent
from zenconvert.calib.back_plan import EMBEDDING
from zenconvert.calib.feeding import Consumer, feed
from zenconvert.calib.methods import METHODS
from zenconvert.calib.solvers.solution import ModuleReport
from zenconvert.calib.statistics_file import workspace_of
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.calib.workspace import Workspace, open_workspace
from zenconvert.errors import NotEnoughResources, UsageError, ZenError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.opening.sources import open_checkpoint
from zenconvert.solve.calibration import (
    experts_of,
    export_imatrix,
    statistics_run,
)
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.solve.importance import expected_importance, solver_for
from zenconvert.solve.solving import (
    SolveJob,
    Solving,
    finished,
    identity,
    open_solving,
    solve_embedding,
    walk_settings,
)
from zenconvert.solve.store import Part, SolvedStore
from zenconvert.solve.variants import Variant, check_names, grids_of
from zenconvert.texts.coverage import ExpertCoverage, LanguageCoverage

if TYPE_CHECKING:
    from zenconvert.calib.layer import LayerStatistics
    from zenconvert.calib.walk import LayerProgress, WalkSettings

_STATISTICS: Final = "statistics.safetensors"
_WALK: Final = "walk"


@dataclass(frozen=True)
class Gathered:
    """What is known of the activations, and what was solved for; all of it lies in files."""

    statistics: Path
    statistics_sha256: str
    imatrix: Path | None
    samples: str
    """Where the texts come from."""
    samples_sha256: str
    """Of the token ids, languages and weights."""
    seed: int
    languages: tuple[LanguageCoverage, ...]
    experts: ExpertCoverage | None
    """None for a model without experts."""
    solved: Mapping[str, Path] = field(default_factory=dict)
    """Name of a variant that was solved for → folder of its layers."""
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """The same name → the layers in it, and None where the head is."""
    modules: Mapping[str, Mapping[str, ModuleReport]] = field(default_factory=dict)
    """Name of such a variant → neutral weight name → how it was quantized."""
    failures: Mapping[str, ZenError] = field(default_factory=dict)
    """Name of a variant that could not be solved for → why."""

    @property
    def tokens(self) -> dict[str, int]:
        """Language → tokens read."""
        return {part.language: part.tokens for part in self.languages}

    def over(self, name: str, checkpoint: Checkpoint) -> Checkpoint:
        """The source with the tensors over it that were solved for a variant.

        Raises what made solving fail, and UsageError for a variant that was not solved for.
        """
        if name in self.failures:
            raise self.failures[name]
        if name not in self.solved:
            raise UsageError(f"{name}: the walk did not solve for this variant; gather again")
        return SolvedStore(self.solved[name]).over(checkpoint, self.parts[name])


def gather(
    source: str | Path,
    variants: Sequence[Variant],
    calibrating: Calibrating,
    folder: Path,
    *,
    device: str = AUTO,
    imatrix: Path | None = None,
    pre: str | None = None,
    stage: Progress | None = None,
) -> Gathered:
    """Walk once over the layers of a model for all variants of a production.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        variants: what will be produced; those with the solvers gptq and awq are solved for.
        calibrating: which texts, and how. With ``sequential``, one solve is possible: it takes a
            walk of its own.
        folder: keeps the statistics and what is solved, for :func:`produce` and for later calls;
            made where it is missing.
        device: torch device of the model and the solvers; ``auto`` is the GPU where torch has one.
        imatrix: also write an importance matrix for llama.cpp here.
        pre: pre-tokenizer of a GGUF source that does not say how it cuts text.
        stage: called with (stage, done, total) as the walk proceeds.

    Interrupted at any moment and called again, it goes on where it was; what is there already, for
    these or other variants, is not done again. A variant that cannot be solved for is among the
    ``failures``. Raises UsageError, and the errors of :func:`zenconvert.calibrate`.
    """

    check_names(variants)
    device = take_device(device)
    work = _Gathering(open_checkpoint(source, pre=pre), calibrating, folder, device)
    for variant in variants:
        with work.failing(variant.name):
            work.add(variant)
    if calibrating.sequential and len(work.solves) > 1:
        names = ", ".join(solve.variants[0].name for solve in work.solves.values())
        raise UsageError(
            f"a sequential walk serves one solve, and these need several: {names}; leave out "
            "--sequential, or make a production of each"
        )
    make_folder(folder)
    work.walk(stage or silent)
    return work.result(imatrix)


@dataclass(frozen=True)
class _Solve:
    """One job, and the variants whose grids it solves."""

    job: SolveJob
    settings: WalkSettings
    folder: Path
    variants: list[Variant] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        """Whether some part is not solved yet."""
        store = SolvedStore(self.folder)
        return not all(store.has(part) for part in self.job.parts)


class _Gathering:
    """The state of :func:`gather`."""

    def __init__(
        self, checkpoint: Checkpoint, calibrating: Calibrating, folder: Path, device: str
    ) -> None:
        self.checkpoint, self.calibrating = checkpoint, calibrating
        self.folder, self.device = folder, device
        self.selection = calibrating.selection(checkpoint)
        self.plain = calibrating.settings(device, moments=False)
        self.statistics = folder / _STATISTICS
        self.run = statistics_run(checkpoint, calibrating, self.selection, self.plain)
        self.solves: dict[str, _Solve] = {}
        self.failures: dict[str, ZenError] = {}

    @contextmanager
    def failing(self, *names: str) -> Iterator[None]:
        """What goes wrong here is the end of these variants."""
        try:
            yield
        except ZenError as error:
            self.fail(error, *names)

    def fail(self, error: ZenError, *names: str) -> None:
        """These variants end with an error, unless they have had one already."""
        for name in names:
            self.failures.setdefault(name, error)

    def add(self, variant: Variant) -> None:
        """Plan to solve for a variant, where it needs that. Raises PlanError and UsageError."""
        solver = solver_for(variant.target.format, variant.solver, has_statistics=True)
        if not METHODS[solver].needs_statistics:
            return
        importance = expected_importance(self.checkpoint)
        grids = grids_of(variant.plan(self.checkpoint, importance, threads=1))
        if not grids:
            return
        fisher = self.calibrating.fisher
        job = SolveJob(self.checkpoint, grids, solver, self.device, fisher=fisher)
        settings = walk_settings(self.calibrating, self.device, solver)
        facts = json.dumps(identity(job, self.selection, settings), sort_keys=True)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
        folder = self.folder / f"{solver}-{digest}.solving"
        self.solves.setdefault(digest, _Solve(job, settings, folder)).variants.append(variant)

    def walk(self, stage: Progress) -> None:
        """Make everything that is not there yet."""
        solves = [solve for solve in self.solves.values() if solve.missing]
        self._walk_plainly([] if self.calibrating.sequential else solves, stage)
        for solve in solves if self.calibrating.sequential else []:
            with self.failing(*(variant.name for variant in solve.variants)):
                self._walk_alone(solve, stage)
        for solve in solves:
            with self.failing(*(variant.name for variant in solve.variants)):
                self._solve_embedding(solve)
        for left in (self.folder / _WALK, workspace_of(self.statistics)):
            shutil.rmtree(left, ignore_errors=True)

    def _walk_plainly(self, solves: Sequence[_Solve], stage: Progress) -> None:
        """One walk over the model as it is, for the statistics and for solves."""
        written = self.run.is_written(self.statistics)
        if written and not solves:
            return
        with ExitStack() as stack:
            enter = stack.enter_context
            workspace = enter(open_workspace(self.folder / _WALK, self.run.metadata))
            apart = [_Apart(self, enter(self._open(solve, silent)), solve) for solve in solves]
            consumers: list[Consumer] = [*apart]
            if not written:
                self.run.check_disk(self.statistics, None)
                writer, own = enter(self.run.writing(self.statistics))
                consumers.append(writer)
                self.run.walk_back(writer, own, lambda at: stage(at.stage, at.layer, at.layers))
            try:
                self._feed(consumers, workspace, stage, moments=bool(solves))
            except NotEnoughResources as error:
                if not solves:
                    raise
                for one in apart:  # without second moments there may be room
                    self.fail(error, *one.names)
                self._feed(consumers, workspace, stage, moments=False)

    def _feed(
        self, consumers: Sequence[Consumer], workspace: Workspace, stage: Progress, *, moments: bool
    ) -> None:
        def progress(at: LayerProgress) -> None:
            stage("calibrating", at.layer, at.layers)

        feed(
            consumers,
            self.run.reference,
            self.selection,
            replace(self.plain, moments=moments),
            workspace=workspace,
            progress=progress,
        )

    def _walk_alone(self, solve: _Solve, stage: Progress) -> None:
        """A walk whose later layers see what was made of the earlier ones."""
        with self._open(solve, stage) as solving:
            feed(
                [solving],
                self.run.reference,
                self.selection,
                solve.settings,
                workspace=solving.workspace,
            )

    def _solve_embedding(self, solve: _Solve) -> None:
        """What no walk forward brings."""
        with self._open(solve, silent) as solving:
            if solve.job.embedding is not None and not solving.store.has(EMBEDDING):
                fisher = open_statistics(self.statistics).fisher()
                solve_embedding(solve.job, fisher, self.run.reference, solving.store)

    def _open(self, solve: _Solve, stage: Progress) -> AbstractContextManager[Solving]:
        """Who takes the parts of a walk for a solve."""
        return open_solving(solve.job, self.selection, solve.settings, solve.folder, stage)

    def result(self, imatrix: Path | None) -> Gathered:
        """What there is now."""
        solved: dict[str, Path] = {}
        parts: dict[str, tuple[Part, ...]] = {}
        modules: dict[str, Mapping[str, ModuleReport]] = {}
        for solve in self.solves.values():
            for variant in solve.variants:
                with self.failing(variant.name):
                    if variant.name not in self.failures:
                        job = replace(solve.job, largest_error=variant.largest_error)
                        _, reports = finished(job, SolvedStore(solve.folder))
                        solved[variant.name], modules[variant.name] = solve.folder, reports
                        parts[variant.name] = job.parts
        statistics = open_statistics(self.statistics)
        if imatrix is not None:
            export_imatrix(statistics, self.checkpoint, imatrix)
        return Gathered(
            statistics=self.statistics,
            statistics_sha256=_sha256(self.statistics),
            imatrix=imatrix,
            samples=self.calibrating.name,
            samples_sha256=self.selection.digest,
            seed=self.calibrating.seed,
            languages=self.selection.coverage,
            experts=experts_of(statistics, self.checkpoint),
            solved=solved,
            parts=parts,
            modules=modules,
            failures=self.failures,
        )


class _Apart:
    """A solve that fails alone."""

    def __init__(self, work: _Gathering, solving: Consumer, solve: _Solve) -> None:
        self.work, self.solving = work, solving
        self.names = [variant.name for variant in solve.variants]

    def has(self, layer: int | None) -> bool:
        """Whether nothing of a layer is wanted; when it failed, nothing is."""
        return self.names[0] in self.work.failures or self.solving.has(layer)

    def take(self, part: LayerStatistics) -> None:
        """Solve for a part."""
        with self.work.failing(*self.names):
            self.solving.take(part)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
