"""Is a report about the files that it names? Digests and header facts are taken again."""

from __future__ import annotations

from pathlib import Path

from zenconvert.errors import ReportMismatch, SourceNotFound, ZenError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.opening.sources import open_checkpoint
from zenconvert.verification.facts import Artifact, Facts, artifact, facts_of
from zenconvert.verification.report import Report


def check_files(report: Report, config: str | Path | None = None) -> tuple[str, ...]:
    """Compare the report with its files; returns notes on what could not be compared.

    ``config`` is the ``config.json`` of a candidate that is an ONNX graph without one.

    The candidate must be there: at its path, or beside the report. The reference is compared where
    it is at hand: a source on the Hub is not fetched for this. Raises ReportMismatch, and
    SourceNotFound for an absent candidate.
    """
    _compare(_open_candidate(report, config), report.candidate, report.candidate_facts)
    label = report.reference.path
    if not label.startswith("builtin:") and not Path(label).exists():
        return (f"the reference {label} is not at hand; its digest was not compared",)
    _compare(open_checkpoint(label), report.reference, report.reference_facts)
    return ()


def places_of(report: Report) -> dict[str, Path]:
    """The models of a report that are at hand."""
    known = {"the candidate": _candidates(report), "the reference": [Path(report.reference.path)]}
    return {what: p for what, places in known.items() for p in reversed(places) if p.exists()}


def _candidates(report: Report) -> list[Path]:
    """Where the candidate may lie."""
    named = Path(report.candidate.path)
    if report.place is None:
        return [named]
    return [named, report.place / named, report.place / named.name]


def _open_candidate(report: Report, config: str | Path | None) -> Checkpoint:
    label, places = report.candidate.path, _candidates(report)
    if label.startswith("builtin:"):
        return open_checkpoint(label, config)
    for place in places:
        if place.exists():
            return open_checkpoint(place, config)
    looked = ", ".join(str(place) for place in places)
    raise SourceNotFound(f"{label}: the candidate of the report is not there; looked at {looked}")


def _compare(checkpoint: Checkpoint, expected: Artifact, facts: Facts) -> None:
    found = artifact(checkpoint, expected.path)
    if found != expected:
        raise ReportMismatch(
            f"{checkpoint.path}: the report is about other bytes: {expected.format} "
            f"sha256:{expected.sha256[:16]}…, found {found.format} sha256:{found.sha256[:16]}…; "
            "verify the file again"
        )
    try:
        now = facts_of(checkpoint)
    except ZenError as error:
        raise ReportMismatch(f"{checkpoint.path}: its facts cannot be read: {error}") from error
    ours, theirs = facts.as_dict(), now.as_dict()
    if changed := [key for key in theirs if ours[key] != theirs[key]]:
        listed = ", ".join(f"{key} {ours[key]!r}, found {theirs[key]!r}" for key in changed)
        raise ReportMismatch(f"{checkpoint.path}: the report does not describe it: {listed}")
