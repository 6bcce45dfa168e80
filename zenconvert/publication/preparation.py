"""A recipe against the world: every mistake is found before anything runs, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zenconvert.base.machine import take_device
from zenconvert.base.places import check_places
from zenconvert.batch.production import plan_variants
from zenconvert.errors import RecipeError, UsageError, ZenError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.opening.sources import open_checkpoint
from zenconvert.planning.plan import Plan
from zenconvert.publication.ledger import STATE
from zenconvert.publication.recipe import SAMPLES, SOURCE, Recipe, VariantRecipe
from zenconvert.publication.recipe_reader import read
from zenconvert.publication.release_report import read_record
from zenconvert.publication.toml_lines import Place
from zenconvert.solve.importance import solver_for
from zenconvert.solve.solving import SolveJob
from zenconvert.solve.variants import grids_of
from zenconvert.verification.engines import ALL, ENGINES, TORCH, refusal, runs
from zenconvert.verification.measurement import evaluation_samples, evaluation_windows
from zenconvert.verification.policy import Policy

if TYPE_CHECKING:
    from zenconvert.texts.selection import Selection
    from zenconvert.texts.windows import Window

Problem = tuple[Place, str, ZenError | None]
"""Where, what, and the error that it is."""
_USAGE: Final = UsageError.exit_code


@dataclass(frozen=True)
class Prepared:
    """A recipe without mistakes, and what was learnt while looking for them."""

    recipe: Recipe
    checkpoint: Checkpoint
    variants: tuple[VariantRecipe, ...]
    """Those that are wanted."""
    plans: Mapping[str, Plan]
    """By the names of all variants."""
    engines: Mapping[str, tuple[str, ...]]
    """Variant → engines that will run it; empty where nothing is measured."""
    calibrated: frozenset[str]
    """Variants whose quantizers learn from statistics."""
    selection: Selection | None
    """What these read; None where there are none."""
    windows: Sequence[Window]
    """What the verification reads."""


def prepare(path: str | Path, only: Sequence[str] = ()) -> Prepared:
    """Read and check a recipe; ``only`` names the variants that are wanted, all by default.

    Raises RecipeError with every mistake; where the only one is that the source cannot be used,
    the error of :func:`zenconvert.open_checkpoint`. UsageError for a name that no variant has.
    """
    recipe, problems = read(path)
    look = _Look(recipe, [(place, text, None) for place, text in problems])
    checkpoint = look.source()
    look.gate()
    look.output()
    if checkpoint is not None:
        plans, calibrated = look.plans()
        engines = look.engines(checkpoint)
        wanted = _wanted(recipe, only)
        look.fisher(checkpoint, plans)
        selection = look.selection(checkpoint) if calibrated else None
        windows = look.windows(checkpoint) if any(engines.values()) else []
    look.raise_problems()
    assert checkpoint is not None
    return Prepared(
        recipe, checkpoint, wanted, plans, engines, frozenset(calibrated), selection, windows
    )


def _wanted(recipe: Recipe, only: Sequence[str]) -> tuple[VariantRecipe, ...]:
    names = {variant.name.lower(): variant for variant in recipe.variants}
    if unknown := [name for name in only if name.lower() not in names]:
        known = ", ".join(variant.name for variant in recipe.variants)
        raise UsageError(f"the recipe has no variant {unknown[0]!r}; it has {known}")
    chosen = {name.lower() for name in only} or set(names)
    return tuple(variant for name, variant in names.items() if name in chosen)


class _Look:
    """Gathers what is wrong."""

    def __init__(self, recipe: Recipe, problems: list[Problem]) -> None:
        self.recipe, self.problems = recipe, problems

    def finding(self, *place: str | int) -> _Finding:
        """An error in the block is a mistake at this place of the recipe."""
        return _Finding(self.problems, place)

    def raise_problems(self) -> None:
        """Raise RecipeError if there are any; the source's own error where it stands alone."""
        if not self.problems:
            return
        place, _, error = self.problems[0]
        alone = len(self.problems) == 1 and place[:1] == ("source",)
        lines = self.recipe.lines
        if alone and error is not None and error.exit_code != _USAGE:
            error.add_note(f"{self.recipe.path}:{lines.of(place)}: 'path' in [source] names it")
            raise error
        shown = [
            (lines.of(place), text.replace("\n", "\n    ")) for place, text, _ in self.problems
        ]
        raise RecipeError(str(self.recipe.path), shown)

    def source(self) -> Checkpoint | None:
        """The source, opened."""
        with self.finding("source", "path"):
            return open_checkpoint(
                self.recipe.source.location, pre=self.recipe.source.pre_tokenizer
            )
        return None

    def gate(self) -> None:
        """Policies, and the release before."""
        gate = self.recipe.gate
        with self.finding("gate", "policy"):
            Policy.load(gate.policy)
        with self.finding("gate", "against"):
            if gate.against is not None:
                read_record(gate.against)

    def output(self) -> None:
        """A folder that is this release's, or can become it."""
        recipe, folder = self.recipe, self.recipe.output.folder
        with self.finding("output", "folder"):
            read = {name: recipe.inputs[name] for name in (SOURCE, SAMPLES)}
            check_places(read, {"the folder": folder})
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder}: it is no folder")
            if folder.is_dir() and not (folder / STATE).exists() and any(folder.iterdir()):
                raise UsageError(f"{folder}: it holds other things than a release; name a new one")

    def plans(self) -> tuple[dict[str, Plan], set[str]]:
        """Plans by variant, and the variants that need statistics."""
        recipe, plans = self.recipe, dict[str, Plan]()
        for calibrated in (True, False):
            chosen = [v for v in recipe.variants if may_calibrate(recipe, v) is calibrated]
            made = [recipe.production(variant) for variant in chosen]
            found = plan_variants(
                recipe.source.location, made, calibrated=calibrated, pre=recipe.source.pre_tokenizer
            )
            for variant in chosen:
                plan = found[variant.name]
                if isinstance(plan, ZenError):
                    hint = "" if calibrated else " (calibration is switched off)"
                    place = recipe.places[variant.name]
                    self.problems.append((place, f"{variant.name}: {plan}{hint}", plan))
                else:
                    plans[variant.name] = plan
        learning = {
            variant.name
            for variant in recipe.variants
            if may_calibrate(recipe, variant)
            and variant.name in plans
            and _uses_statistics(plans[variant.name])
        }
        return plans, learning

    def fisher(self, checkpoint: Checkpoint, plans: Mapping[str, Plan]) -> None:
        """A walk back is for a variant that makes use of it."""
        if not self.recipe.calibration.calibrating.fisher:
            return
        for name, plan in plans.items():
            variant = self.recipe.variant(name)
            learns = may_calibrate(self.recipe, variant)
            solver = solver_for(variant.target.format, variant.solver, has_statistics=learns)
            if learns and SolveJob(checkpoint, grids_of(plan), solver, fisher=True).embedding:
                return
        with self.finding("calibration", "fisher"):
            raise UsageError(
                "'fisher' has no use here: no variant has an embedding that a solver fills; give "
                'one of GGUF solver = "gptq", or leave it out'
            )

    def selection(self, checkpoint: Checkpoint) -> Selection | None:
        """The windows of the calibration."""
        calibration = self.recipe.calibration
        self._device("calibration", calibration.device)
        calibrating = calibration.calibrating
        key = "languages" if calibrating.languages is not None else "samples"
        with self.finding("calibration", key):
            return calibrating.selection(checkpoint)
        return None

    def windows(self, checkpoint: Checkpoint) -> Sequence[Window]:
        """The windows of the verification."""
        verification = self.recipe.verification
        self._device("verify", verification.device)
        with self.finding("verify", "languages" if verification.languages is not None else "text"):
            samples = evaluation_samples(verification.text, verification.languages)
            with self.finding("verify", "context"):
                return evaluation_windows(checkpoint, samples, verification.context)
        return ()

    def engines(self, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
        """The engines of every variant: those asked for that run its format."""
        found = {}
        for variant in self.recipe.variants:
            with self.finding(*self.recipe.places[variant.name], "engines"):
                found[variant.name] = _able_engines(variant, checkpoint)
        return found

    def _device(self, table: str, device: str) -> None:
        if device != "cpu":
            with self.finding(table, "device"):
                take_device(device)


class _Finding:
    """Ends a block at an error, and keeps it."""

    def __init__(self, problems: list[Problem], place: Place) -> None:
        self.problems, self.place = problems, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ZenError):
            self.problems.append((self.place, str(error), error))
        return isinstance(error, ZenError)


def may_calibrate(recipe: Recipe, variant: VariantRecipe) -> bool:
    """Whether statistics may be used for a variant."""
    return recipe.calibration.enabled and variant.calibrate


def _uses_statistics(plan: Plan) -> bool:
    return any(step.to.uses_importance for step in plan.steps if step.action == "quantize")


def engines_of(variant: VariantRecipe) -> tuple[str, ...]:
    """Those of the engines asked for that run the variant's format; ``all`` stays as it is."""
    fitting = [name for name in ENGINES if runs(name, variant.target.format)]
    return tuple(name for name in variant.engines if name in {ALL, TORCH, *fitting})


def _able_engines(variant: VariantRecipe, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Raises UsageError where none of those asked for runs the format, MissingDependency."""
    artifact = replace(checkpoint, format=variant.target.format)
    chosen = engines_of(variant)
    if ALL in chosen:
        fitting = engines_of(replace(variant, engines=tuple(ENGINES)))
        return (TORCH, *(name for name in fitting if refusal(name, artifact) is None))
    if variant.engines and not chosen:
        raise UsageError(
            f"{variant.name}: none of the engines {', '.join(variant.engines)} runs "
            f"{artifact.format}; torch runs everything"
        )
    for name in chosen:
        if name != TORCH and (problem := refusal(name, artifact)) is not None:
            raise problem
    return chosen
