"""What the jobs of a release take of memory and disk, from headers alone.

Upper estimates, but for what an engine of its own takes beside the artifact that it loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from zenconvert.calib.methods import METHODS
from zenconvert.publication.preparation import Prepared
from zenconvert.publication.recipe import VariantRecipe
from zenconvert.reference.beside import numbers
from zenconvert.reference.inputs import by_layer
from zenconvert.solve.calibration import statistics_run
from zenconvert.solve.importance import solver_for
from zenconvert.verification.engines import TORCH
from zenconvert.verification.metrics import block_positions

if TYPE_CHECKING:
    from zenconvert.calib.statistics_file import StatisticsRun

_BASE: Final = 1_500_000_000
"""A process with torch and transformers."""
_FLOAT: Final = 4
_SOLVING_COPIES: Final = 4
"""Second moments of one input while it is solved for: the sums, and float64 work on them."""
_SCORING_COPIES: Final = 8
"""Blocks of logits while two models are compared."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes."""

    ram: int = 0
    vram: int = 0
    disk: int = 0
    """While it runs, beside the artifacts."""


def statistics(prepared: Prepared) -> StatisticsRun | None:
    """All that is known of the statistics file before it is computed; None where there is none."""
    if prepared.selection is None:
        return None
    calibration, checkpoint = prepared.recipe.calibration, prepared.checkpoint
    calibrating = calibration.calibrating
    settings = calibrating.settings(calibration.device, moments=False)
    return statistics_run(checkpoint, calibrating, prepared.selection, settings)


def gathering(prepared: Prepared) -> Need:
    """The walk over the reference model; nothing where no variant learns."""
    from zenconvert.calib.layer import DTYPES
    from zenconvert.reference import memory
    from zenconvert.reference.batches import most_tokens

    run = statistics(prepared)
    if run is None:
        return Need()
    settings, solves = run.settings, _solves(prepared)
    reference = run.reference
    need = memory.needs(
        prepared.checkpoint.hyperparameters.hidden,
        [(reference.by_layer[n], run.inputs(n)) for n in range(reference.layers)],
        run.selection.windows,
        batch_tokens=most_tokens(settings.device),
        item=DTYPES[settings.compute].itemsize,
        moments=bool(solves),
    )
    work = need.activations + _SOLVING_COPIES * need.largest_moments
    disk = run.disk_bytes + sum(solves.values())
    head = prepared.checkpoint.tensors.get("head.weight") if solves else None
    held = max(need.block, _FLOAT * head.elements if head is not None else 0)  # in turn
    if settings.kind == "cpu":
        return Need(_BASE + 2 * held + work, 0, disk)
    return Need(_BASE + 2 * held, held + work, disk)


def _solves(prepared: Prepared) -> dict[object, int]:
    """What is solved for → bytes of the solved weights; variants with the same grids share them."""
    found: dict[object, int] = {}
    for variant in prepared.variants:
        solver = solver_for(variant.target.format, variant.solver, has_statistics=True)
        steps = [
            step
            for step in prepared.plans[variant.name].steps
            if step.action == "quantize" and step.to.is_quantized
        ]
        if variant.name in prepared.calibrated and METHODS[solver].needs_statistics and steps:
            grids = tuple((step.source, step.to) for step in steps)
            found[solver, grids] = sum(step.bytes for step in steps)
    return found


def making(prepared: Prepared, variant: VariantRecipe) -> Need:
    """Reading the source and writing a variant."""
    return Need(ram=prepared.plans[variant.name].peak_ram_bytes)


def verifying(prepared: Prepared, variant: VariantRecipe) -> Need:
    """Comparing a variant with the source, block by block; engines of their own load it whole."""
    engines = prepared.engines[variant.name]
    if not engines:
        return Need()
    hp = prepared.checkpoint.hyperparameters
    layers = by_layer(prepared.checkpoint.architecture.tensor_names(hp)).values()
    block = _FLOAT * max(sum(prod(name.shape) for name in names) for names in layers)
    tokens = sum(len(window.ids) for window in prepared.windows)
    states = _FLOAT * tokens * (hp.hidden + numbers(hp))
    heads = 2 * _FLOAT * hp.vocab * hp.hidden
    logits = _SCORING_COPIES * _FLOAT * hp.vocab * block_positions(hp.vocab)
    native = prepared.plans[variant.name].output_bytes if set(engines) - {TORCH} else 0
    if prepared.recipe.verification.device == "cpu":
        return Need(_BASE + max(2 * block + heads + logits, native) + states, 0, 2 * states)
    return Need(_BASE + block + states, max(block + heads + logits, native), 2 * states)
