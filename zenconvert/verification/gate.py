"""The gate: a report and a policy → a verdict.

* PASS: every interval lies within its limit.
* FAIL: an interval lies beyond its limit, or the artifact does not work in its engine.
* INCONCLUSIVE: nothing fails, but an interval straddles its limit, too little was measured, or an
  engine that should have measured does not work here.
* ANOMALOUS: nothing fails, but the numbers are too good to be true or the baseline is off.

Every language is judged by itself. What is judged is read from the artifact and the report; a
report that is not about the files that it names is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from math import isfinite, isnan
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import several
from zenconvert.verification.drift import TO_MEDIAN, Drift
from zenconvert.verification.file_check import check_files
from zenconvert.verification.growth import Growth, growth
from zenconvert.verification.intervals import Interval
from zenconvert.verification.policy import Limit, Policy, Tier
from zenconvert.verification.report import EngineFailure, Report, Run, check_whole


class Outcome(StrEnum):
    """The result of a check, and of all of them."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ANOMALOUS = "ANOMALOUS"


EXIT_CODES: Final = {
    Outcome.PASS: 0,
    Outcome.FAIL: 1,
    Outcome.INCONCLUSIVE: 6,
    Outcome.ANOMALOUS: 6,
}
_WORST_FIRST: Final = (Outcome.FAIL, Outcome.ANOMALOUS, Outcome.INCONCLUSIVE)
OVERALL: Final = "overall"
ENGINE: Final = "engine"
"""What a check is about that says that an engine failed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was judged."""

    engine: str
    scope: str
    """``overall`` or a language."""
    what: str
    """A figure, or what else was looked at."""
    outcome: Outcome
    reason: str
    """In words, with the numbers."""
    warning: bool = False
    """Passed, but beyond the policy's warning."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and everything it looked at."""

    policy: str
    policy_sha256: str
    tier: str | None
    """None where the policy has no tier for the artifact's bits."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """What was not looked at."""

    @cached_property
    def outcome(self) -> Outcome:
        """The worst of all checks: FAIL, then ANOMALOUS, then INCONCLUSIVE."""
        found = {check.outcome for check in self.checks}
        return next((outcome for outcome in _WORST_FIRST if outcome in found), Outcome.PASS)

    @property
    def exit_code(self) -> int:
        """0 for PASS, 1 for FAIL, 6 for the others."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not PASS, gravest first."""
        bad = [c for outcome in _WORST_FIRST for c in self.checks if c.outcome is outcome]
        return tuple(f"{c.outcome}: {c.engine}, {c.scope}: {c.reason}" for c in bad)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What passed beyond the policy's warnings."""
        return tuple(f"{c.engine}, {c.scope}: {c.reason}" for c in self.checks if c.warning)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            "policy": self.policy,
            "policy_sha256": self.policy_sha256,
            "tier": self.tier,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "checks": [{**asdict(c), "outcome": c.outcome.value} for c in self.checks],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Verdict:
        """The inverse of :meth:`as_dict`; what follows from the checks is derived from them.

        Raises KeyError, TypeError or ValueError.
        """
        return cls(
            policy=value["policy"],
            policy_sha256=value["policy_sha256"],
            tier=value["tier"],
            checks=tuple(
                Check(**{**check, "outcome": Outcome(check["outcome"])})
                for check in value["checks"]
            ),
            notes=tuple(value["notes"]),
        )


def gate(
    report: Report,
    policy: Policy | str | Path = "default",
    *,
    against: Report | None = None,
    config: str | Path | None = None,
) -> Verdict:
    """Judge a report by a policy, and by the report of an earlier release where there is one.

    ``policy`` may be the path of its file, or ``default``. ``config`` is the ``config.json`` of a
    candidate that is an ONNX graph without one.

    Raises UsageError for a policy with mistakes, ReportMismatch when the report is not about the
    files that it names, SourceNotFound when the candidate is not there, and CorruptFile for a
    report that lacks what has to be judged.
    """
    known = policy if isinstance(policy, Policy) else Policy.load(policy)
    return decide(report, known, against=against, notes=check_files(report, config))


def decide(
    report: Report,
    policy: Policy,
    *,
    against: Report | None = None,
    notes: tuple[str, ...] = (),
) -> Verdict:
    """Judge a report by a policy alone, for those who compared it with its files themselves.

    Raises CorruptFile for a report that lacks what has to be judged.
    """
    check_whole(report)
    tier = policy.tier_of(report.candidate_facts)
    checks = [check for run in report.runs for check in _judge_run(report, run, policy, tier)]
    checks += [_failure(name, why) for name, why in report.failed.items()]
    if against is not None:
        for run in report.runs:
            checks += [_growth(run.engine, g, policy) for g in growth(report, run, against)]
    return Verdict(
        policy=policy.name,
        policy_sha256=policy.sha256,
        tier=None if tier is None else tier.name,
        checks=tuple(checks),
        notes=(*notes, *(f"{name} did not run: {why}" for name, why in report.absent.items())),
    )


def _failure(engine: str, why: EngineFailure) -> Check:
    """An engine that gave no figures: the artifact does not work in it, or nothing is known."""
    outcome = Outcome.FAIL if why.of_artifact else Outcome.INCONCLUSIVE
    return Check(engine, OVERALL, ENGINE, outcome, f"the engine failed: {why.reason}")


def _judge_run(report: Report, run: Run, policy: Policy, tier: Tier | None) -> Iterator[Check]:
    def check(scope: str, what: str, outcome: Outcome, reason: str) -> Check:
        return Check(run.engine, scope, what, outcome, reason)

    for problem in run.proof.problems:
        yield check(OVERALL, "proof", Outcome.FAIL, problem)
    yield from _anomalies(report, run, policy)
    for code, drift in run.languages.items():
        if drift.tokens < policy.min_tokens or drift.blocks < policy.min_blocks:
            yield check(
                code, "tokens", Outcome.INCONCLUSIVE,
                f"{several(drift.tokens, 'token', 'tokens')} in "
                f"{several(drift.blocks, 'document', 'documents')} are too few; the policy wants "
                f"{policy.min_tokens} in {policy.min_blocks}",
            )  # fmt: skip
    if tier is None:
        yield check(
            OVERALL, "tier", Outcome.INCONCLUSIVE,
            f"the policy {policy.name} has no tier for {report.candidate_facts.bits} bits and "
            f"{report.candidate_facts.parameters:,} parameters",
        )  # fmt: skip
        return
    facts = {
        "format": report.candidate.format,
        "encoding": report.candidate_facts.encoding,
        "architecture": report.candidate_facts.architecture,
        "engine": run.engine,
    }
    for figure, limit in policy.limits(tier, "overall", facts).items():
        yield from _figure(report, run, None, figure, limit)
    for code in run.languages:
        limits = policy.limits(tier, "language", {**facts, "language": code})
        for figure, limit in limits.items():
            yield from _figure(report, run, code, figure, limit)


def _anomalies(report: Report, run: Run, policy: Policy) -> Iterator[Check]:
    def anomaly(what: str, reason: str, scope: str = OVERALL) -> Check:
        return Check(run.engine, scope, what, Outcome.ANOMALOUS, reason)

    facts = report.candidate_facts
    if facts.bits <= policy.moving_bits and report.noise.covers(run.overall):
        yield anomaly(
            "noise",
            f"an artifact of {facts.bits} bits that moved no further than the reference does from "
            f"itself in {report.noise.label}; is the reference a decoded quantization?",
        )
    highest = policy.baseline * report.reference_facts.vocabulary
    if not run.overall.reference_perplexity <= highest:
        yield anomaly(
            "baseline",
            f"the reference's perplexity is {run.overall.reference_perplexity:.1f} of a vocabulary "
            f"of {report.reference_facts.vocabulary}: it does not model this text",
        )
    for scope, drift in ((OVERALL, run.overall), *run.languages.items()):
        high = drift.intervals.get("perplexity.ratio", (0.0, drift.perplexity_ratio))[1]
        if not high >= policy.lowest_ratio:
            yield anomaly(
                "perplexity.ratio",
                f"perplexity fell to {drift.perplexity_ratio:.4f} of the reference's (at most "
                f"{high:.4f}); below {policy.lowest_ratio} is too good to be true",
                scope,
            )


def _figure(
    report: Report, run: Run, language: str | None, figure: str, limit: Limit
) -> Iterator[Check]:
    """The check of one figure against its limit; none where it has no meaning."""
    drift = run.overall if language is None else run.languages[language]
    noise = report.noise
    if figure == TO_MEDIAN and (len(run.languages) < 2 or noise.covers(drift, language)):
        return  # ratios of noise say nothing
    scope = language or OVERALL
    value, interval = drift.figures.get(figure), drift.intervals.get(figure)
    if value is None or interval is None:
        yield Check(
            run.engine, scope, figure, Outcome.INCONCLUSIVE,
            f"{figure} has no interval; one document alone says nothing about others",
        )  # fmt: skip
        return
    if limit.above_noise:
        floor = noise.summary.overall if language is None else noise.summary.languages[language]
        limit = _raised(limit, figure, floor)
    outcome, warning = _decide(interval, limit)
    low, high = interval
    reason = f"{figure} {value:.5g} ({low:.5g} to {high:.5g}), {_words(limit)}"
    yield Check(run.engine, scope, figure, outcome, reason, warning)


def _raised(limit: Limit, figure: str, floor: Drift) -> Limit:
    """The limit, counted from the noise floor."""
    if figure == "top1":
        lost = 1 - floor.top1
        return Limit(
            at_least=None if limit.at_least is None else limit.at_least - lost,
            warn_below=None if limit.warn_below is None else limit.warn_below - lost,
        )
    added = floor.figures[figure]
    return Limit(
        at_most=None if limit.at_most is None else limit.at_most + added,
        warn_above=None if limit.warn_above is None else limit.warn_above + added,
    )


def _decide(interval: Interval, limit: Limit) -> tuple[Outcome, bool]:
    """The outcome, and whether it is a warning. What is no number passes no limit."""
    low, high = interval
    limits = (limit.at_most, limit.at_least)
    if any(isnan(value) for value in (low, high, *(v for v in limits if v is not None))):
        return Outcome.FAIL, False
    if limit.at_least is not None and not isfinite(high):
        return Outcome.FAIL, False
    outcome = Outcome.PASS
    if limit.at_most is not None and high > limit.at_most:
        outcome = Outcome.FAIL if low > limit.at_most else Outcome.INCONCLUSIVE
    if limit.at_least is not None and low < limit.at_least and outcome is not Outcome.FAIL:
        outcome = Outcome.FAIL if high < limit.at_least else Outcome.INCONCLUSIVE
    beyond = (limit.warn_above is not None and high > limit.warn_above) or (
        limit.warn_below is not None and low < limit.warn_below
    )
    return outcome, outcome is Outcome.PASS and beyond


def _words(limit: Limit) -> str:
    parts = {
        "at most": limit.at_most,
        "at least": limit.at_least,
        "warning above": limit.warn_above,
        "warning below": limit.warn_below,
    }
    return ", ".join(f"{name} {value:.5g}" for name, value in parts.items() if value is not None)


def _growth(engine: str, found: Growth, policy: Policy) -> Check:
    """Judge how the drift grew since an earlier release."""
    if found.problem:
        outcome = Outcome.ANOMALOUS if found.anomalous else Outcome.INCONCLUSIVE
        return Check(engine, found.scope, "against", outcome, found.problem)
    allowed = 1 + policy.regression
    low, high = found.interval
    outcome = Outcome.PASS
    if isnan(low) or isnan(high):
        outcome = Outcome.FAIL
    elif high > allowed and not found.within_noise:
        outcome = Outcome.FAIL if low > allowed else Outcome.INCONCLUSIVE
    reason = (
        f"mean KL divergence is {found.ratio:.3f} ({low:.3f} to {high:.3f}) of the earlier "
        f"release's, at most {allowed:.3f}"
    )
    if found.within_noise:
        reason += "; the difference is inside the noise floor"
    return Check(engine, found.scope, "against", outcome, reason)
