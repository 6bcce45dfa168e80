"""Release: a recipe becomes a folder that can be checked and published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenconvert.base.atomic import system_errors
from zenconvert.base.progress import Progress
from zenconvert.errors import GateFailed, GateInconclusive, ReleaseFailed, UsageError
from zenconvert.publication.checksums import SIGNATURE
from zenconvert.publication.evidence import assemble
from zenconvert.publication.executors import executor_named
from zenconvert.publication.facts import ReleaseFacts
from zenconvert.publication.graph import GraphRun, held, undone
from zenconvert.publication.jobs import (
    Event,
    Failure,
    Job,
    JobDone,
    JobProgress,
    JobStarted,
    Kind,
    Task,
)
from zenconvert.publication.ledger import Ledger
from zenconvert.publication.preparation import Prepared, prepare
from zenconvert.publication.preview import Preview, preview_of
from zenconvert.publication.recipe import Recipe
from zenconvert.publication.results import Account
from zenconvert.publication.schedule import Schedule
from zenconvert.publication.tidying import drop_scratch, tidy
from zenconvert.verification.agreement import Disagreement

if TYPE_CHECKING:
    from zenconvert.publication.publishing import Published
    from zenconvert.publication.signing import Signer

Tell = Callable[[Event], None]


@dataclass(frozen=True)
class ReleaseResult:
    """A release as it stands now."""

    folder: Path
    facts: ReleaseFacts
    failures: Mapping[str, Failure]
    """Job → why it failed."""
    disagreements: tuple[Disagreement, ...]
    """Where variants do not agree on what their users see."""
    published: Published | None = None
    """None where nobody asked for it."""

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
            "variants": [variant.as_dict() for variant in self.facts.variants],
            "failures": {title: failure.text for title, failure in self.failures.items()},
            "disagreements": [str(one) for one in self.disagreements],
            "published": None if self.published is None else asdict(self.published),
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
    signer: Signer | None = None,
    publish: bool = False,
    allow: Sequence[str] | None = None,
    tell: Tell | None = None,
) -> ReleaseResult:
    """Make, measure and judge the variants of a recipe, and put the evidence beside them.

    Args:
        recipe: a TOML file (``publication.recipe``).
        only: names of variants; all by default.
        executor: ``local`` processes, or ``ray`` for the machines of a cluster.
        signer: signs the release and every shelf that has no signature yet.
        publish: put the shelves where the recipe's ``[publish]`` says.
        allow: verdicts that may be published; the recipe's by default.
        tell: called with events as jobs begin, proceed and end, one at a time.

    Interrupted at any moment and called again, it goes on where it was: jobs that are done are not
    done again, and the bytes come out the same. Variants that fail are in the result; they do not
    stop the others.

    Raises RecipeError with every mistake in the recipe, NotEnoughResources before anything is
    done, UsageError when another run works on the folder or there is no ``[publish]``,
    MissingDependency, PublishingFailed, and the errors of :func:`zenconvert.open_checkpoint` and of
    signing.
    """
    prepared = prepare(recipe, only)
    if publish and prepared.recipe.publishing is None:
        raise UsageError(f"{recipe}: there is no [publish] that says where; add one with a 'hub'")
    if signer is not None:
        signer.check()
    preview_of(prepared).check()
    folder, tell = prepared.recipe.output.folder, tell or _silent
    with held(folder):
        result = _made(prepared, executor, tell)
        if signer is not None:
            _sign(result, signer, tell)
        if publish:
            result = _publish(result, prepared.recipe, signer, allow, tell)
    return result


def _made(prepared: Prepared, executor: str, tell: Tell) -> ReleaseResult:
    """Run the jobs, and put together what came of them."""
    schedule, folder = Schedule(prepared), prepared.recipe.output.folder
    ledger = Ledger(folder)
    with system_errors(folder):
        tidy(ledger, schedule)
    left = undone(schedule.jobs, ledger)
    served = [job.name for job in left if job.kind == "variant" and job.needs]

    def task(batch: Sequence[Job]) -> Task:
        return schedule.task(batch, served)

    workers = executor_named(executor, folder, prepared.recipe.threads)
    failures = GraphRun(schedule.jobs, ledger, workers, task, tell).run()
    account = Account(prepared, schedule, ledger, failures)
    with _step("assemble", "evidence", tell):
        facts = account.facts()
        assemble(facts, folder)
    if not failures:
        with system_errors(folder):
            drop_scratch(ledger, schedule)
    titles = {job.title: failures[job.key] for job in schedule.jobs if job.key in failures}
    return ReleaseResult(folder, facts, titles, account.disagreements())


def _sign(result: ReleaseResult, signer: Signer, tell: Tell) -> None:
    """Sign every shelf, then the release around them; what is signed already stays."""
    from zenconvert.publication.signing import sign

    made = [shelf for shelf, found in result.facts.shelves.items() if any(v.is_made for v in found)]
    for name in (*made, "."):
        if not (result.folder / name / SIGNATURE).exists():
            with _step("sign", name, tell):
                sign(result.folder / name, signer)


def _publish(
    result: ReleaseResult,
    recipe: Recipe,
    signer: Signer | None,
    allow: Sequence[str] | None,
    tell: Tell,
) -> ReleaseResult:
    from zenconvert.publication.hub import Destination
    from zenconvert.publication.publishing import publish

    to = recipe.publishing
    assert to is not None  # the caller saw to that
    with _step("publish", to.hub, tell) as progress:
        published = publish(
            result.folder,
            result.facts,
            Destination(to.hub, to.private),
            allow=to.allow if allow is None else allow,
            signer=signer,
            progress=progress,
        )
    return replace(result, published=published)


@contextmanager
def _step(kind: Kind, name: str, tell: Tell) -> Iterator[Progress]:
    """A job that is done here, anew in every run; gives what tells of its progress."""
    job, begun = Job("", kind, name), time.monotonic()
    tell(JobStarted(job))
    yield lambda stage, done, total: tell(JobProgress(job, stage, done, total))
    tell(JobDone(job, time.monotonic() - begun))


def _silent(event: Event) -> None:
    """Report nothing."""


def _listed(head: str, reasons: Sequence[str]) -> str:
    return head + "".join(f"\n  - {reason}" for reason in reasons)
