"""Several variants of one model side by side: ranks that chance cannot turn, and what a byte buys.

Variants that chance or the noise floor could have put in another order share a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zenconvert.errors import UsageError
from zenconvert.verification.growth import paired, texts_of
from zenconvert.verification.report import Report, Run


@dataclass(frozen=True, slots=True)
class Compared:
    """One artifact in one engine."""

    name: str
    report: Report
    run: Run
    rank: int = 1
    """From 1; variants that cannot be told apart share the rank of the best of them."""
    on_front: bool = False
    """No other variant is both smaller and nearer to the reference."""

    @property
    def bytes(self) -> int:
        """Stored bytes of all tensors."""
        return self.report.candidate_facts.bytes

    def as_dict(self) -> dict[str, Any]:
        """JSON form: the figures that variants are chosen by."""
        overall, facts = self.run.overall, self.report.candidate_facts
        worst = self.run.summary.worst_language
        return {
            "name": self.name,
            "rank": self.rank,
            "on_front": self.on_front,
            "bytes": facts.bytes,
            "bits_per_weight": facts.bits_per_weight,
            "kl_mean": overall.kl_mean,
            "kl_mean_interval": overall.intervals.get("kl.mean"),
            "perplexity_ratio": overall.perplexity_ratio,
            "top1": overall.top1,
            "worst_language": worst,
            "worst_kl_mean": self.run.languages[worst].kl_mean,
            "within_noise": self.report.noise.covers(overall),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Variants by engine, nearest to the reference first."""

    engines: dict[str, tuple[Compared, ...]]

    @property
    def reports(self) -> tuple[Report, ...]:
        """Every report, in the order of the first engine's variants."""
        found: dict[int, Report] = {}
        for variants in self.engines.values():
            for variant in variants:
                found.setdefault(id(variant.report), variant.report)
        return tuple(found.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            engine: [v.as_dict() for v in variants] for engine, variants in self.engines.items()
        }


def compare(reports: Sequence[Report]) -> Comparison:
    """Put reports on the same reference and text side by side, engine by engine.

    Raises UsageError when there is none, or they are on different references or texts.
    """
    if not reports:
        raise UsageError("there is no report to compare")
    first = reports[0]
    for other in reports[1:]:
        for what, ours, theirs in (
            ("reference", first.reference.sha256, other.reference.sha256),
            ("text", first.text.ids_sha256, other.text.ids_sha256),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{other.candidate.path} was measured on another {what} than "
                    f"{first.candidate.path}; such figures cannot be compared"
                )
    _check_documents(reports)
    names = _names(reports)
    engines: dict[str, list[Compared]] = {}
    for name, report in zip(names, reports, strict=True):
        for run in report.runs:
            engines.setdefault(run.engine, []).append(Compared(name, report, run))
    return Comparison({engine: _ranked(variants) for engine, variants in engines.items()})


def _check_documents(reports: Sequence[Report]) -> None:
    first = reports[0]
    for report in reports:
        for run in report.runs:
            if texts_of(run) != texts_of(first.runs[0]):
                raise UsageError(
                    f"{report.candidate.path}: engine {run.engine} was measured on other documents "
                    f"than {first.candidate.path}; such figures cannot be compared"
                )


def paths_of(reports: Sequence[Report]) -> list[str]:
    """The candidates' paths, with a number where another report has the same."""
    given = [report.candidate.path for report in reports]
    return [
        path if given.count(path) == 1 else f"{path} ({given[:number].count(path) + 1})"
        for number, path in enumerate(given)
    ]


def _names(reports: Sequence[Report]) -> list[str]:
    """File names, or whole paths where these are not enough."""
    short = [Path(report.candidate.path).name for report in reports]
    return short if len(set(short)) == len(short) else paths_of(reports)


def _ranked(variants: Sequence[Compared]) -> tuple[Compared, ...]:
    ordered = sorted(variants, key=lambda v: v.run.overall.kl_mean)
    best, rank = ordered[0], 1
    result = []
    for place, variant in enumerate(ordered, 1):
        if _further(variant, best):
            best, rank = variant, place
        front = not any(_dominates(other, variant) for other in ordered)
        result.append(replace(variant, rank=rank, on_front=front))
    return tuple(result)


def _further(variant: Compared, than: Compared) -> bool:
    """Whether it has moved further from the reference, beyond chance and noise."""
    floor = variant.report.noise.summary.overall.kl_mean
    found = paired("overall", variant.run.documents, than.run.documents, floor)
    return found.difference[0] > 0 and not found.within_noise


def _dominates(other: Compared, variant: Compared) -> bool:
    ours, theirs = variant.run.overall.kl_mean, other.run.overall.kl_mean
    no_worse = other.bytes <= variant.bytes and theirs <= ours
    return no_worse and (other.bytes < variant.bytes or theirs < ours)
