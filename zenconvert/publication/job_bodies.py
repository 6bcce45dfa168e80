"""What the jobs of a release do, in the process that a worker is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zenconvert.base.atomic import write_whole
from zenconvert.base.machine import usable_cores
from zenconvert.base.notes import make_folder
from zenconvert.base.progress import Progress
from zenconvert.batch.production import Gathered, gather, produce
from zenconvert.conversion import Conversion
from zenconvert.errors import ConversionFailed, ZenError
from zenconvert.opening.sources import resolve
from zenconvert.planning.plan import Plan
from zenconvert.publication.evidence import IMATRIX
from zenconvert.publication.jobs import Failure, Task
from zenconvert.publication.ledger import (
    FAILED_ENGINES,
    STATE,
    Ledger,
    Record,
    json_bytes,
)
from zenconvert.publication.preparation import engines_of
from zenconvert.publication.recipe import Recipe, VariantRecipe
from zenconvert.publication.recipe_reader import parse
from zenconvert.verification.engines import ALL
from zenconvert.verification.measurement import verify
from zenconvert.verification.report import Report

REPORTS: Final = f"{STATE}/reports"
RECEIPTS: Final = f"{STATE}/receipts"
"""A file for every variant that a pass wrote, though the pass did not end."""
_CARD: Final = "README.md"
"""A folder's own, which the release replaces."""


def perform(task: Task, progress: Progress) -> Mapping[str, Failure]:
    """Carry out a task; gives the jobs that failed. Raises what makes all of them fail."""
    recipe, _ = parse(Path(task.recipe), task.text.encode())
    work = _Work(task, recipe, Ledger(recipe.output.folder), progress)
    return {"gather": work.gather, "variant": work.produce, "verify": work.verify}[task.kind]()


class _Work:
    """A task at work."""

    def __init__(self, task: Task, recipe: Recipe, ledger: Ledger, progress: Progress) -> None:
        self.task, self.recipe, self.ledger, self.progress = task, recipe, ledger, progress
        self.source = recipe.source.location

    def gather(self) -> dict[str, Failure]:
        """The walk over the reference model."""
        ((key, name),) = self.task.jobs
        served = [self.recipe.variant(one) for one in self.task.served]
        shelf = next((one.shelf for one in self.recipe.variants if one.is_file), None)
        imatrix = None if shelf is None else self.ledger.folder / shelf / IMATRIX
        if imatrix is not None:
            imatrix.parent.mkdir(parents=True, exist_ok=True)
        found = self._gathered(served, imatrix)
        outputs = [found.statistics, *([imatrix] if imatrix is not None else [])]
        solved = {
            path.relative_to(self.ledger.folder).as_posix(): path.stat().st_size
            for folder in sorted(set(found.solved.values()))
            for path in sorted(folder.iterdir())
            if path.is_file()
        }
        facts = {
            "calibration": self.task.calibration,
            "samples": found.samples,
            "samples_sha256": found.samples_sha256,
            "statistics_sha256": found.statistics_sha256,
            "tokens": found.tokens,
            "seed": found.seed,
        }
        written = self.ledger.written(outputs)
        self.ledger.put(Record(key, "gather", name, written, scratch=solved, facts=facts))
        return {}

    def _gathered(self, served: Sequence[VariantRecipe], imatrix: Path | None = None) -> Gathered:
        """What is gathered for some variants; what is there already is not gathered again."""
        calibration = self.recipe.calibration
        folder = gathered_folder(self.ledger.folder, self.task.calibration)
        return gather(
            self.source,
            [self.recipe.production(variant) for variant in served],
            calibration.calibrating,
            folder,
            device=calibration.device,
            imatrix=imatrix,
            pre=self.recipe.source.pre_tokenizer,
            stage=self.progress,
        )

    def produce(self) -> dict[str, Failure]:
        """One pass over the source for all variants of the task."""
        variants = [self.recipe.variant(name) for _, name in self.task.jobs]
        for variant in variants:
            self.recipe.path_of(variant).parent.mkdir(parents=True, exist_ok=True)
        made = produce(
            self.source,
            [self.recipe.production(variant) for variant in variants],
            self._gathered(variants) if self.task.calibration else None,
            folder=self.ledger.folder / RECEIPTS,
            threads=usable_cores(),
            force=True,
            pre=self.recipe.source.pre_tokenizer,
            stage=self.progress,
        )
        failures = {}
        for key, name in self.task.jobs:
            result = made[name]
            if isinstance(result, ZenError):
                failures[key] = Failure.of(result)
            else:
                self._keep(key, name, result)
        return failures

    def _keep(self, key: str, name: str, made: Conversion) -> None:
        written = self.ledger.written(made.files)
        folder = self.recipe.path_of(self.recipe.variant(name))
        card = (folder / _CARD).relative_to(self.ledger.folder).as_posix()
        outputs = tuple(one for one in written if one.path != card)
        facts = {"exact": made.plan.exact, "losses": losses(made.plan, made)}
        self.ledger.put(Record(key, "variant", name, outputs, facts=facts))

    def verify(self) -> dict[str, Failure]:
        """Every engine that was asked for and runs the variant's format."""
        ((key, name),) = self.task.jobs
        variant = self.recipe.variant(name)
        made = self.ledger.get(self.task.reads)
        if made is None:
            raise ConversionFailed(f"{name}: the record of the variant is gone; run again")
        artifact = self.ledger.folder / (made.outputs[0].path if variant.is_file else variant.shelf)
        report = self._measured(artifact, variant)
        path = self.ledger.folder / REPORTS / f"{key}.json"
        make_folder(path.parent)
        write_whole(path, json_bytes(report.as_dict()))
        facts = {FAILED_ENGINES: sorted(report.failed)} if report.failed else {}
        written = self.ledger.written([path])
        self.ledger.put(Record(key, "verify", name, written, read=made.digest, facts=facts))
        return {}

    def _measured(self, artifact: Path, variant: VariantRecipe) -> Report:
        """One report of all engines."""
        verification = self.recipe.verification
        settings: dict[str, Any] = {
            "languages": verification.languages,
            "text": verification.text,
            "context": verification.context,
            "device": verification.device,
            "threads": self.recipe.threads,
            "pre": self.recipe.source.pre_tokenizer,
            "progress": self.progress,
        }
        engines = (ALL,) if ALL in variant.engines else engines_of(variant)
        return verify(resolve(self.source), artifact, engine=engines, **settings)


def gathered_folder(folder: Path, calibration: str) -> Path:
    """Where what is gathered for a release lies."""
    return folder / STATE / f"gathered-{calibration[:12]}"


def losses(plan: Plan, made: Conversion | None = None) -> list[str]:
    """What is lossy, one line each kind of step, and how large the error is where it is known."""
    kinds = Counter(
        (str(step.from_), str(step.to), step.action) for step in plan.steps if not step.exact
    )
    lines = [
        f"{count} tensor{'s'[: count != 1]} {before} → {after} ({action})"
        for (before, after, action), count in kinds.items()
    ]
    lines += [f"lost: {fact.name}: {fact.why}" for fact in plan.lost]
    if made is not None and made.modules:
        worst = max(made.modules, key=lambda name: made.modules[name].error)
        error = made.modules[worst].error
        lines.append(f"largest weighted relative error {error:.3g}, in {worst}")
    return lines
