"""Many variants of one model: one walk over its layers, and one pass over its weights.

::

    plans = plan_variants(source, variants, calibrated=True)      # headers only
    gathered = gather(source, variants, Calibrating(), folder)    # one walk; statistics, solves
    made = produce(source, variants, gathered)                    # one read of the source

What each writes is what :func:`zenconvert.convert` would write alone. Variants fail alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from zenconvert.base.machine import usable_cores
from zenconvert.base.notes import make_folder
from zenconvert.base.progress import Progress, silent
from zenconvert.batch.shared_walk import Gathered, gather
from zenconvert.calib.methods import METHODS
from zenconvert.calib.solvers.solution import ModuleReport
from zenconvert.conversion import Conversion
from zenconvert.errors import ZenError
from zenconvert.formats.registry import format_named
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.opening.sources import open_checkpoint
from zenconvert.planning.plan import Importance, Plan
from zenconvert.solve.importance import expected_importance, measured_importance, solver_for
from zenconvert.solve.variants import Variant, check_names, grids_of
from zenconvert.write.one_pass import write_outputs
from zenconvert.write.planned_output import Making

__all__ = ["Gathered", "Variant", "gather", "plan_variants", "produce"]


def plan_variants(
    source: str | Path,
    variants: Sequence[Variant],
    *,
    calibrated: bool,
    threads: int | None = None,
    pre: str | None = None,
) -> dict[str, Plan | ZenError]:
    """Plan every variant from headers alone; name → its plan, or why there can be none.

    ``calibrated`` says that there will be statistics: types that need importance weights are
    allowed, and grids are solved for. ``pre`` is the pre-tokenizer of a GGUF source that does not
    say how it cuts text. Raises UsageError for two variants of one name or output, and
    the errors of :func:`zenconvert.open_checkpoint`.
    """
    check_names(variants)
    checkpoint = open_checkpoint(source, pre=pre)
    importance = expected_importance(checkpoint) if calibrated else None
    found: dict[str, Plan | ZenError] = {}
    for variant in variants:
        try:
            solver_for(variant.target.format, variant.solver, has_statistics=calibrated)
            weights = _weights(variant, importance)
            found[variant.name] = variant.plan(checkpoint, weights, threads or usable_cores())
        except ZenError as error:
            found[variant.name] = error
    return found


def produce(
    source: str | Path,
    variants: Sequence[Variant],
    gathered: Gathered | None,
    *,
    folder: Path | None = None,
    threads: int | None = None,
    force: bool = False,
    pre: str | None = None,
    stage: Progress | None = None,
) -> dict[str, Conversion | ZenError]:
    """Write every variant in one pass over the source; name → what was written, or why nothing was.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        variants: what to write; those that are solved for must have been with :func:`gather`.
        gathered: None where nothing was calibrated.
        folder: keeps a receipt for every finished variant, so that later calls let it stand; made
            where it is missing. Without one, an output that is there already is refused.
        threads: workers; by default as many as there are usable cores.
        force: replace existing outputs.
        pre: pre-tokenizer of a GGUF source that does not say how it cuts text.
        stage: called with (stage, done, total) as the pass proceeds.

    Killed at any moment and called again, it goes on about where it was (half a minute of work may
    be lost), to the same bytes. Raises UsageError for two variants of one name or output,
    NotEnoughResources for a folder that cannot be made, and the errors of
    :func:`zenconvert.open_checkpoint` and of reading the statistics.
    """
    check_names(variants)
    checkpoint = open_checkpoint(source, pre=pre)
    importance = measured_importance(gathered.statistics, checkpoint) if gathered else None
    made: dict[str, Conversion | ZenError] = {}
    makings: dict[str, tuple[Making, Mapping[str, ModuleReport]]] = {}
    for variant in variants:
        try:
            making, modules = _making(
                variant, checkpoint, importance, gathered, threads or usable_cores()
            )
            receipt = folder / f"{variant.name}.json" if folder is not None else None
            makings[variant.name] = replace(making, receipt=receipt), modules
        except ZenError as error:
            made[variant.name] = error
    if folder is not None:
        make_folder(folder)
    written = write_outputs(
        [making for making, _ in makings.values()],
        force=force,
        done=partial(stage or silent, "writing"),
    )
    for (name, (making, modules)), files in zip(makings.items(), written, strict=True):
        if isinstance(files, ZenError):
            made[name] = files
        else:
            made[name] = Conversion(making.plan, files, modules)
    return {variant.name: made[variant.name] for variant in variants}


def _making(
    variant: Variant,
    checkpoint: Checkpoint,
    importance: Importance | None,
    gathered: Gathered | None,
    threads: int,
) -> tuple[Making, Mapping[str, ModuleReport]]:
    """The output of a variant, and what a solver did for it. Raises what stands in its way."""
    solver = solver_for(variant.target.format, variant.solver, has_statistics=gathered is not None)
    weights = _weights(variant, importance)
    planned = variant.plan(checkpoint, weights, threads)
    if gathered is None or not METHODS[solver].needs_statistics or not grids_of(planned):
        return Making(planned, variant.out, weights or {}), {}
    over, modules = gathered.over(variant.name, checkpoint), gathered.modules[variant.name]
    return Making(variant.plan_solved(over, planned, modules), variant.out), modules


def _weights(variant: Variant, importance: Importance | None) -> Importance | None:
    """The importance weights for a variant that has a use for them."""
    return importance if format_named(variant.target.format).is_weighed else None
