"""What is known of a release once its jobs have ended: the facts that cards and provenance tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from zenconvert.opening.sources import open_checkpoint
from zenconvert.publication.facts import (
    CalibrationFacts,
    ReleaseFacts,
    SourceFacts,
    VariantFacts,
)
from zenconvert.publication.jobs import Failure
from zenconvert.publication.ledger import Ledger, Record
from zenconvert.publication.preparation import Prepared
from zenconvert.publication.recipe import VariantRecipe
from zenconvert.publication.release_report import read_record, variants_of
from zenconvert.publication.schedule import Schedule
from zenconvert.verification.agreement import Disagreement, check_agreement
from zenconvert.verification.facts import artifact
from zenconvert.verification.gate import gate
from zenconvert.verification.policy import Policy, policy_path
from zenconvert.verification.report import Report
from zenconvert.version import __version__

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class Account:
    """Reads the records of a release's jobs."""

    def __init__(
        self,
        prepared: Prepared,
        schedule: Schedule,
        ledger: Ledger,
        failures: Mapping[str, Failure],
    ) -> None:
        self.prepared, self.recipe = prepared, prepared.recipe
        self.schedule, self.ledger, self.failures = schedule, ledger, failures
        self.policy = Policy.load(self.recipe.gate.policy)

    def facts(self) -> ReleaseFacts:
        """Everything; variants that nobody wanted yet are left out."""
        recipe = self.recipe
        variants = [self._variant(variant) for variant in recipe.variants]
        publishing = recipe.publishing
        return ReleaseFacts(
            name=recipe.source.name,
            source=self._source(),
            calibration=self._calibration(),
            policy=recipe.gate.policy,
            policy_sha256=self.policy.sha256,
            recipe=recipe.data,
            version=__version__,
            variants=tuple(variant for variant in variants if variant is not None),
            policy_file=policy_path(recipe.gate.policy).read_bytes(),
            hub=None if publishing is None else publishing.hub,
        )

    def disagreements(self) -> tuple[Disagreement, ...]:
        """Variants whose vocabulary, special tokens or chat template are not the source's."""
        made = {
            variant.name: open_checkpoint(self._path(variant, record))
            for variant in self.recipe.variants
            if (record := self._made(variant)) is not None
        }
        return check_agreement(self.prepared.checkpoint, made)

    def _source(self) -> SourceFacts:
        source, checkpoint = self.recipe.source, self.prepared.checkpoint
        tokenizer, card = checkpoint.tokenizer, checkpoint.metadata.card
        commit = checkpoint.path.name
        on_hub = checkpoint.path.parent.name == "snapshots" and _COMMIT.fullmatch(commit)
        named = checkpoint.metadata.label if on_hub else None
        return SourceFacts(
            path=source.path,
            revision=commit if on_hub else None,
            sha256=artifact(checkpoint, source.path).sha256,
            name=source.name,
            base_model=source.base_model or named,
            licence=source.licence or _text(card.get("license")),
            languages=source.languages or _texts(card.get("language")),
            tags=source.tags,
            architecture=checkpoint.architecture.id,
            model_type=str(checkpoint.config["model_type"]),
            parameters=sum(tensor.elements for tensor in checkpoint.tensors.values()),
            context=checkpoint.hyperparameters.context,
            chat_template=tokenizer.chat_template,
            special={role: tokenizer.tokens[number] for role, number in tokenizer.special.items()},
        )

    def _calibration(self) -> CalibrationFacts | None:
        record = self.ledger.gathered(self.schedule.calibration)
        if record is None:
            return None
        return CalibrationFacts(**{f.name: record.facts[f.name] for f in fields(CalibrationFacts)})

    def _made(self, variant: VariantRecipe) -> Record | None:
        """The record of a variant that is there."""
        key = self.schedule.making(variant).key
        record = None if key in self.failures else self.ledger.get(key)
        return record if record is not None and self.ledger.holds(record) else None

    def _path(self, variant: VariantRecipe, made: Record) -> Path:
        return self.ledger.folder / (made.outputs[0].path if variant.is_file else variant.shelf)

    def _variant(self, variant: VariantRecipe) -> VariantFacts | None:
        failure = self.failures.get(self.schedule.making(variant).key)
        made = self._made(variant)
        if made is None and failure is None:
            return None
        report = None if made is None else self._report(variant, made)
        earlier = self._earlier.get(variant.name)
        facts: Mapping[str, Any] = {} if made is None else made.facts
        shelf = f"{variant.shelf}/"
        return VariantFacts(
            name=variant.name,
            target=str(variant.target),
            format=variant.target.format,
            shelf=variant.shelf,
            files=()
            if made is None
            else tuple(file.path.removeprefix(shelf) for file in made.outputs),
            size=0 if made is None else sum(file.size for file in made.outputs),
            exact=bool(facts.get("exact")),
            losses=tuple(facts.get("losses", ())),
            report=report,
            verdict=None if report is None else gate(report, self.policy, against=earlier),
            error=None if failure is None else failure.text,
        )

    def _report(self, variant: VariantRecipe, made: Record) -> Report | None:
        """The report of a variant, about the files as they are named now."""
        key = self.schedule.measuring(variant).key
        record = None if key in self.failures else self.ledger.get(key)
        if record is None or record.read != made.digest or not self.ledger.holds(record):
            return None
        report = Report.from_json(self.ledger.folder / record.outputs[0].path)
        here, source = self._path(variant, made), self.prepared.checkpoint.path
        return replace(
            report,
            candidate=replace(report.candidate, path=str(here)),
            reference=replace(report.reference, path=str(source)),
        )

    @cached_property
    def _earlier(self) -> dict[str, Report]:
        """Variant → its report in the release before."""
        against = self.recipe.gate.against
        if against is None:
            return {}
        variants = variants_of(read_record(against), str(against))
        return {v.name: v.report for v in variants if v.report is not None}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list) else ()
