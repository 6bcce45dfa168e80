"""Release: a recipe becomes a folder that can be checked and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import GateFailed, GateInconclusive, ReleaseFailed
from zenconvert.publication.account import Account
from zenconvert.publication.executors import executor_named
from zenconvert.publication.facts import ReleaseFacts
from zenconvert.publication.graph import Run, held, undone
from zenconvert.publication.jobs import Event, Failure, Job, Task
from zenconvert.publication.ledger import Ledger
from zenconvert.publication.preparation import prepare
from zenconvert.publication.preview import Preview, preview_of
from zenconvert.publication.schedule import Schedule
from zenconvert.publication.shelf import assemble
from zenconvert.publication.tidying import drop_scratch, tidy
from zenconvert.verification.agreement import Disagreement

_DECIDED: Final = {"PASS", "FAIL", "ERROR"}


@dataclass(frozen=True)
class ReleaseResult:
    """A release as it stands now."""

    folder: Path
    facts: ReleaseFacts
    failures: Mapping[str, Failure]
    """Job → why it failed."""
    disagreements: tuple[Disagreement, ...]
    """Where variants do not agree on what their users see."""

    @property
    def exit_code(self) -> int:
        """1 when something failed, 6 when the gate cannot tell, else 0."""
        outcomes = {variant.outcome for variant in self.facts.variants}
        if self.failures or self.disagreements or outcomes & {"FAIL", "ERROR"}:
            return 1
        return 6 if outcomes & {"INCONCLUSIVE", "ANOMALOUS"} else 0

    def raise_problems(self) -> None:
        """Raise ReleaseFailed, GateFailed or GateInconclusive, with all reasons."""
        reasons = [f"{title}: {failure.text}" for title, failure in self.failures.items()]
        reasons += [str(one) for one in self.disagreements]
        if reasons:
            raise ReleaseFailed(_listed(f"{self.folder}: the release is not whole", reasons))
        for outcomes, error in (
            ({"FAIL"}, GateFailed),
            ({"INCONCLUSIVE", "ANOMALOUS"}, GateInconclusive),
        ):
            judged = [v for v in self.facts.variants if v.verdict and v.outcome in outcomes]
            reasons = [
                f"{v.name}: {reason}" for v in judged if v.verdict for reason in v.verdict.reasons
            ]
            if judged:
                names = ", ".join(f"{v.name} {v.outcome}" for v in judged)
                raise error(_listed(names, reasons))

    def as_dict(self) -> dict[str, Any]:
        """JSON form, without the reports, which are in the folder."""
        return {
            "folder": str(self.folder),
            "exit_code": self.exit_code,
            "variants": [
                {
                    "name": variant.name,
                    "target": variant.target,
                    "shelf": variant.shelf,
                    "files": list(variant.files),
                    "size": variant.size,
                    "exact": variant.exact,
                    "losses": list(variant.losses),
                    "outcome": variant.outcome,
                    "error": variant.error,
                }
                for variant in self.facts.variants
            ],
            "failures": {title: failure.text for title, failure in self.failures.items()},
            "disagreements": [str(one) for one in self.disagreements],
        }


def plan_release(recipe: str | Path, *, only: Sequence[str] = ()) -> Preview:
    """What a release will write and take; ``only`` names variants.

    Raises RecipeError with every mistake in the recipe, and as :func:`zenconvert.open_checkpoint`.
    """
    return preview_of(prepare(recipe, only))


def release(
    recipe: str | Path,
    *,
    only: Sequence[str] = (),
    executor: str = "local",
    tell: Callable[[Event], None] | None = None,
) -> ReleaseResult:
    """Make, measure and judge the variants of a recipe, and put the evidence beside them.

    Args:
        recipe: a TOML file (``publication.recipe``).
        only: names of variants; all by default.
        executor: ``local`` processes, or ``ray`` for the machines of a cluster.
        tell: called with events as jobs begin, proceed and end, one at a time.

    Interrupted at any moment and called again, it goes on where it was: jobs that are done are not
    done again, and the bytes come out the same. Variants that fail are in the result; they do not
    stop the others.

    Raises RecipeError with every mistake in the recipe, NotEnoughResources before anything is
    done, UsageError when another run works on the folder, MissingDependency, and the errors of
    :func:`zenconvert.open_checkpoint`.
    """
    prepared = prepare(recipe, only)
    preview_of(prepared).check()
    schedule, folder = Schedule(prepared), prepared.recipe.output.folder
    ledger = Ledger(folder)
    workers = executor_named(executor, folder, prepared.recipe.threads)
    with held(folder):
        tidy(ledger, schedule)
        served = [job.name for job in undone(schedule.jobs, ledger) if job.kind == "variant"]

        def task(batch: Sequence[Job]) -> Task:
            return schedule.task(batch, [n for n in served if n in prepared.calibrated])

        run = Run(schedule.jobs, ledger, workers, task, tell or _silent)
        failures = run.run()
        account = Account(prepared, schedule, ledger, failures)
        facts = account.facts()
        assemble(facts, folder)
        if not failures:
            drop_scratch(ledger, schedule)
    titles = {job.title: failures[job.key] for job in schedule.jobs if job.key in failures}
    return ReleaseResult(folder, facts, titles, account.disagreements())


def _silent(event: Event) -> None:
    """Report nothing."""


def _listed(head: str, reasons: Sequence[str]) -> str:
    return head + "".join(f"\n  - {reason}" for reason in reasons)
