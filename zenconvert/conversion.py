"""The main path: open a checkpoint, plan, stream it slab by slab into its new form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from zenconvert.base.atomic import hidden_name
from zenconvert.base.machine import AUTO, take_device, usable_cores
from zenconvert.base.places import check_places
from zenconvert.base.progress import Progress, silent
from zenconvert.calib.methods import METHODS
from zenconvert.calib.solvers.solution import ModuleReport
from zenconvert.errors import InputWarning, UsageError, ZenError
from zenconvert.formats.registry import FORMATS, format_named
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Grid
from zenconvert.model.target import Options, Solver, Target
from zenconvert.opening.sources import open_checkpoint, with_pre
from zenconvert.planning.plan import Importance, Plan
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.solve.importance import Knowledge, expected_importance
from zenconvert.solve.solving import SolveJob, solved
from zenconvert.solve.variants import Variant, grids_of
from zenconvert.write.one_pass import write_outputs
from zenconvert.write.output import refuse_source, refuse_taken
from zenconvert.write.planned_output import Making


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote."""

    plan: Plan
    files: tuple[Path, ...]
    modules: Mapping[str, ModuleReport] = field(default_factory=dict)
    """Neutral weight name → how a solver quantized it."""
    device: str | None = None
    """The torch device that solved or rounded; None where no device was asked for or of use."""


def convert(
    source: str | Path,
    out: str | Path,
    to: str | Target,
    *,
    options: Options | None = None,
    importance: str | Path | None = None,
    statistics: str | Path | None = None,
    calibrating: Calibrating | None = None,
    solver: Solver | None = None,
    device: str = AUTO,
    largest_error: float | None = None,
    config: str | Path | None = None,
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        out: file (GGUF) or folder to write.
        to: ``format[:type]``, e.g. ``gguf:q4_k_m``.
        options: refinements of the target.
        importance: llama.cpp imatrix GGUF with importance weights.
        statistics: statistics file of :func:`zenconvert.calibrate`.
        calibrating: gather the statistics in this run.
        solver: ``rtn``, ``gptq`` or ``awq``; by default the target format's own where there are
            statistics, else ``rtn``. GGUF types are rounded as llama.cpp does by default, and
            filled by ``gptq`` where it is asked for.
        device: torch device of the solver and of calibrating; ``auto`` is the GPU where torch has
            one. Where there is neither, one that is named rounds to GGUF's blocks.
        largest_error: fail when a module's weighted relative error is larger.
        config: ``config.json`` of a source that is an ONNX graph without one.
        threads: workers; by default as many as there are usable cores.
        exact: refuse every lossy step.
        allow_requantize: quantize weights that are already quantized.
        force: replace an existing output.
        progress: called with (stage, done, total) as the work proceeds.

    Raises PlanError, UsageError, OutputExists, NotEnoughResources, ConversionFailed, and the errors
    of :func:`zenconvert.open_checkpoint` and :func:`zenconvert.calibrate`. After an error nothing
    stands under the output's name; layers that were solved are kept beside it for the next run, and
    so is what a killed or interrupted run wrote, but for its last half minute.
    """
    out, target = Path(out), _target(to)
    variant = Variant(
        out.name, out, target, options or Options(), solver, largest_error, exact, allow_requantize
    )
    if calibrating is not None and variant.options.ignored_keys:
        calibrating = replace(calibrating, ignored_keys=variant.options.ignored_keys)
    knowledge = Knowledge(importance, statistics, calibrating)
    check_places({"the source": source, "--config": config, **knowledge.inputs}, {"OUT": out})
    checkpoint = with_pre(open_checkpoint(source, config), variant.options.pre_tokenizer)
    check_places({"the source": checkpoint.path}, {"OUT": out})
    _look_at_name(out, target)
    chosen = knowledge.solver_for(target.format, solver)
    cores, stage = threads or usable_cores(), progress or silent
    if calibrating is not None or target.is_auto or METHODS[chosen].needs_statistics:
        device = take_device(device)
    making = _Conversion(source, checkpoint, variant, chosen, device, cores, force, stage)
    return making.allotted(knowledge) if target.is_auto else making.run(knowledge)


@dataclass(frozen=True)
class _Conversion:
    """A conversion under way; errors as of :func:`convert`."""

    source: str | Path
    checkpoint: Checkpoint
    variant: Variant
    solver: Solver
    device: str
    threads: int
    force: bool
    stage: Progress

    def allotted(self, knowledge: Knowledge) -> Conversion:
        """With types that are chosen by what errors cost."""
        from zenconvert.solve.allotting import allotted, stand_in

        checkpoint, out, stage = self.checkpoint, self.variant.out, self.stage
        expected = stand_in(self.variant).plan(
            checkpoint, expected_importance(checkpoint), self.threads
        )
        refuse_source(expected.layout, out, checkpoint.stamps)
        refuse_taken(expected.layout, out, force=self.force)
        with knowledge.whole(self.source, checkpoint, out, self.device, stage) as known:
            variant = allotted(
                self.variant, checkpoint, known.stored(checkpoint),
                solver=self.solver, device=self.device, threads=self.threads, stage=stage,
            )  # fmt: skip
            return replace(self, variant=variant).run(known)

    def run(self, knowledge: Knowledge) -> Conversion:
        """With the types of the target."""
        calibrating, method = knowledge.calibrating, METHODS[self.solver]
        checkpoint, variant, out = self.checkpoint, self.variant, self.variant.out
        if calibrating is not None and calibrating.fisher and not method.solves_head:
            raise UsageError("--fisher goes with --solver gptq: nothing else makes use of it")
        if calibrating is not None and not method.needs_statistics:
            expected = variant.plan(checkpoint, expected_importance(checkpoint), self.threads)
            refuse_taken(expected.layout, out, force=self.force)
        with knowledge.weights(
            self.source, checkpoint, self.solver, out, self.device, self.stage
        ) as weights:
            planned = variant.plan(checkpoint, weights, self.threads)
            refuse_source(planned.layout, out, checkpoint.stamps)
            grids = grids_of(planned)
            if not method.needs_statistics or not grids:
                return run(
                    planned, out, importance=weights, device=self.device, force=self.force,
                    stage=self.stage,
                )  # fmt: skip
        refuse_taken(planned.layout, out, force=self.force)
        return self._solved(knowledge, planned, grids)

    def _solved(self, knowledge: Knowledge, planned: Plan, grids: Mapping[str, Grid]) -> Conversion:
        """With the codes that a solver finds."""
        checkpoint, variant, out = self.checkpoint, self.variant, self.variant.out
        origin = knowledge.origin(checkpoint)
        fisher = origin.fisher if isinstance(origin, Calibrating) else origin.has_fisher
        job = SolveJob(checkpoint, grids, self.solver, self.device, variant.largest_error, fisher)
        if isinstance(origin, Calibrating) and fisher and job.embedding is None:
            raise UsageError(
                f"--fisher has no use here: {variant.target} leaves the embedding as it is"
            )
        folder = out.with_name(hidden_name(out.name, "solving"))
        with solved(job, origin, folder, self.stage) as (over, modules):
            final = variant.plan_solved(over, planned, modules)
            result = run(final, out, device=self.device, force=self.force, stage=self.stage)
        return replace(result, modules=modules, device=self.device)


def _look_at_name(out: Path, target: Target) -> None:
    """Warn of a name that will mislead whoever reads it."""
    suffixes = {one.suffix for one in FORMATS.values() if one.suffix} | {".onnx", ".safetensors"}
    own = format_named(target.format).suffix
    if own is None and out.suffix.lower() in suffixes:
        warnings.warn(
            InputWarning(f"{out}: {target.format} targets are folders, and this looks like a file"),
            stacklevel=3,
        )
    elif own is not None and out.suffix.lower() != own:
        warnings.warn(
            InputWarning(f"{out}: most programs know {target.format} files by the suffix {own}"),
            stacklevel=3,
        )


def plan(
    source: str | Path,
    to: str | Target,
    *,
    out: str | Path = "model",
    options: Options | None = None,
    importance: str | Path | None = None,
    statistics: str | Path | None = None,
    solver: Solver | None = None,
    config: str | Path | None = None,
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
) -> Plan:
    """Plan a conversion from headers alone; arguments and errors as in :func:`convert`.

    Only a target of the type ``auto`` reads weights: its types are chosen by what their errors
    cost.
    """
    target, out = _target(to), Path(out)
    pre = options.pre_tokenizer if options is not None else None
    checkpoint = with_pre(open_checkpoint(source, config), pre)
    knowledge = Knowledge(importance, statistics, None)
    chosen = knowledge.solver_for(target.format, solver)
    variant = Variant(
        out.name,
        out,
        target,
        options or Options(),
        exact=exact,
        allow_requantize=allow_requantize,
    )
    cores, solves = threads or usable_cores(), METHODS[chosen].needs_statistics
    if target.is_auto:
        from zenconvert.solve.allotting import allotted, stand_in

        stand_in(variant)
        with knowledge.whole(source, checkpoint, out, "cpu", silent) as known:
            variant = allotted(
                variant, checkpoint, known.stored(checkpoint),
                solver=chosen, device="cpu", threads=cores, stage=silent,
            )  # fmt: skip
    weights = expected_importance(checkpoint) if solves else knowledge.from_files(checkpoint)
    planned = variant.plan(checkpoint, weights, cores)
    if solves and grids_of(planned):
        knowledge.stored(checkpoint).check_moments()
    return planned


def _target(to: str | Target) -> Target:
    return Target.parse(to) if isinstance(to, str) else to


def run(
    plan: Plan,
    out: Path,
    *,
    importance: Importance | None = None,
    device: str = AUTO,
    force: bool = False,
    stage: Progress = silent,
) -> Conversion:
    """Carry out a plan. Raises as :func:`convert`."""
    making = Making(plan, out, importance or {})
    rounds = any(step.action == "quantize" and step.to.encodes_on("cuda") for step in plan.steps)
    taken = take_device(device) if rounds and device != AUTO else None
    (files,) = write_outputs(
        [making], force=force, done=partial(stage, "writing"), device=taken or "cpu"
    )
    if isinstance(files, ZenError):
        raise files
    return Conversion(plan, files, device=taken)
