"""``report.json`` of a release or of one shelf (``release.schema.json``).

It holds every variant's report and verdict, and nothing of the machine: artifacts are named by
their path below the release, and other paths by their last part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from zenconvert.base.escaping import json_text
from zenconvert.base.source_files import parse_json
from zenconvert.errors import CorruptFile, InvalidInput
from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.verification.gate import ENGINE, Verdict
from zenconvert.verification.report import SCHEMA as REPORT_SCHEMA
from zenconvert.verification.report import Report, Schema, compiled, problem_of

REPORT: Final = "report.json"
MAX_RECORD: Final = 16 << 20
"""Bytes: hundreds of variants."""
SCHEMA: Final = Path(__file__).parent / "release.schema.json"
SCHEMA_VERSION: Final = 1
# an absolute path up to its last part; not what follows a scheme's colon
_PLACE: Final = re.compile(r"(?<![\w.:/@~-])(?:~|[A-Za-z]:)?/(?:[^\s/:'\"]+/)+")


def without_places(text: str) -> str:
    """A text whose absolute paths are cut down to their last parts."""
    return _PLACE.sub("", text)


def cleaned(facts: ReleaseFacts) -> ReleaseFacts:
    """The facts as a release tells them: deterministic, and without anything of the machine."""
    named = facts.source.path.startswith("builtin:") or facts.source.revision is not None
    source = replace(facts.source, path=facts.source.path if named else facts.source.name)
    calibration = facts.calibration
    if calibration is not None:
        calibration = replace(calibration, samples=_last(calibration.samples))
    variants = tuple(_cleaned_variant(v, source.path) for v in facts.variants)
    policy = Path(facts.policy).name
    return replace(facts, source=source, calibration=calibration, policy=policy, variants=variants)


def _last(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else without_places(text)


def _cleaned_variant(variant: VariantFacts, reference: str) -> VariantFacts:
    report, verdict = variant.report, variant.verdict
    if report is not None:
        old = (report.candidate.path, report.reference.path)
        if verdict is not None:
            notes = [note.replace(old[0], variant.label) for note in verdict.notes]
            notes = [without_places(note.replace(old[1], reference)) for note in notes]
            checks = tuple(
                replace(check, reason=without_places(check.reason))
                if check.what == ENGINE
                else check
                for check in verdict.checks
            )
            verdict = replace(verdict, notes=tuple(notes), checks=checks)
        report = replace(
            report,
            candidate=replace(report.candidate, path=variant.label),
            reference=replace(report.reference, path=reference),
            text=replace(report.text, source=_last(report.text.source)),
            runs=tuple(
                replace(run, details={k: without_places(v) for k, v in run.details.items()})
                for run in report.runs
            ),
            absent={engine: without_places(why) for engine, why in report.absent.items()},
            failed={
                engine: replace(why, reason=without_places(why.reason))
                for engine, why in report.failed.items()
            },
            place=None,
        )
    return replace(
        variant,
        losses=tuple(map(without_places, variant.losses)),
        error=None if variant.error is None else without_places(variant.error),
        report=report,
        verdict=verdict,
    )


def record(facts: ReleaseFacts, variants: Sequence[VariantFacts]) -> dict[str, Any]:
    """JSON form of cleaned facts."""
    source, calibration = facts.source, facts.calibration
    return {
        "schema_version": SCHEMA_VERSION,
        "zenconvert": facts.version,
        "name": facts.name,
        "source": {
            "path": source.path,
            "revision": source.revision,
            "sha256": source.sha256,
            "name": source.name,
            "base_model": source.base_model,
            "licence": source.licence,
            "languages": list(source.languages),
            "architecture": source.architecture,
            "model_type": source.model_type,
            "parameters": source.parameters,
            "context": source.context,
        },
        "calibration": calibration
        and {
            "samples": calibration.samples,
            "samples_sha256": calibration.samples_sha256,
            "statistics_sha256": calibration.statistics_sha256,
            "tokens": dict(calibration.tokens),
            "seed": calibration.seed,
        },
        "policy": {"name": facts.policy, "sha256": facts.policy_sha256},
        "variants": [_variant(variant) for variant in variants],
    }


def _variant(variant: VariantFacts) -> dict[str, Any]:
    return {
        **variant.as_dict(),
        "report": None if variant.report is None else variant.report.as_dict(),
        "verdict": None if variant.verdict is None else variant.verdict.as_dict(),
    }


def record_bytes(value: Mapping[str, Any]) -> bytes:
    """The file."""
    return (json_text(value, indent=1) + "\n").encode()


def read_record(path: Path) -> dict[str, Any]:
    """Read and check a file. Raises CorruptFile with the first thing that is wrong."""
    try:
        value = parse_json(path, MAX_RECORD)
    except InvalidInput as error:
        raise CorruptFile(f"{path}: the report of the release cannot be read: {error}") from error
    if (problem := problem_of(_schema(), value)) is not None:
        raise CorruptFile(f"{path}: it does not obey {SCHEMA.name}: {problem}")
    return dict(value)


def variants_of(value: Mapping[str, Any], where: str) -> tuple[VariantFacts, ...]:
    """The variants of a checked record. Raises CorruptFile for a report that is malformed."""
    found = []
    for variant in value["variants"]:
        report, verdict = variant["report"], variant["verdict"]
        name = f"{where}, {variant['name']}"
        try:
            found.append(
                VariantFacts(
                    **{key: variant[key] for key in ("name", "target", "format", "shelf", "size")},
                    files=tuple(variant["files"]),
                    exact=variant["exact"],
                    losses=tuple(variant["losses"]),
                    report=None if report is None else Report.from_dict(report, where=name),
                    verdict=None if verdict is None else Verdict.from_dict(verdict),
                    error=variant["error"],
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: the verdict is malformed: {error!r}") from error
    return tuple(found)


@cache
def _schema() -> Schema:
    return compiled(whole_schema())


def whole_schema() -> dict[str, Any]:
    """The schema of a record with that of a report in it."""
    schema, report = (json.loads(p.read_text(encoding="utf-8")) for p in (SCHEMA, REPORT_SCHEMA))
    parts = {**report.pop("$defs"), **schema["$defs"], "report": report}
    text = json.dumps({**schema, "$defs": parts})
    text = text.replace(f'"{REPORT_SCHEMA.name}#', '"#')
    whole: dict[str, Any] = json.loads(text.replace(f'"{REPORT_SCHEMA.name}"', '"#/$defs/report"'))
    return whole
