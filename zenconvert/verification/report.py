"""The result of a verification, and its JSON form (``report.schema.json``)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Final

from zenconvert import errors
from zenconvert.base.source_files import parse_json
from zenconvert.errors import (
    CorruptFile,
    EngineFailed,
    InvalidInput,
    MissingDependency,
    SourceNotFound,
    UsageError,
    ZenError,
)
from zenconvert.verification.drift import Drift, Scores, Summary
from zenconvert.verification.engine_check import Proof
from zenconvert.verification.facts import Artifact, Facts
from zenconvert.verification.histogram import histogram_as_dict
from zenconvert.verification.intervals import CONFIDENCE, RESAMPLES, SEED
from zenconvert.verification.noise import Noise
from zenconvert.verification.tokens import Position

SCHEMA_VERSION: Final = 1
MOST_BYTES: Final = 8 * 1024 * 1024
"""Of a report file: some forty thousand documents."""
_HALF: Final = re.compile("[\ud800-\udfff]")
_DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest that is compiled; the schemas have no word that later drafts read otherwise."""
SCHEMA: Final = Path(__file__).parent / "report.schema.json"
"""The JSON Schema of a report file."""


@dataclass(frozen=True, slots=True)
class Document:
    """Sums over one block of the bootstrap, for paired comparisons."""

    language: str
    name: str
    tokens: int
    reference_nll: float
    candidate_nll: float
    kl: float
    same_top: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine made of the artifact."""

    engine: str
    details: Mapping[str, str]
    """Version, device, types: what ran."""
    summary: Summary
    proof: Proof
    histogram: tuple[int, ...]
    """Positions by KL divergence, in the classes of ``histogram.EDGES``."""
    worst: tuple[Position, ...]
    documents: tuple[Document, ...]

    @property
    def overall(self) -> Drift:
        """Drift over every token."""
        return self.summary.overall

    @property
    def languages(self) -> dict[str, Drift]:
        """Drift by language."""
        return self.summary.languages

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "engine": self.engine,
            "engine_details": dict(self.details),
            **self.summary.as_dict(),
            "proof": self.proof.as_dict(),
            "kl_histogram": histogram_as_dict(self.histogram),
            "worst_positions": [position.as_dict() for position in self.worst],
            "documents": [asdict(document) for document in self.documents],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Run:
        """The inverse of :meth:`as_dict`. Raises KeyError or TypeError."""
        return cls(
            engine=value["engine"],
            details=value["engine_details"],
            summary=Summary.from_dict(value),
            proof=Proof.from_dict(value["proof"]),
            histogram=tuple(value["kl_histogram"]["counts"]),
            worst=tuple(Position(**p) for p in value["worst_positions"]),
            documents=tuple(Document(**d) for d in value["documents"]),
        )


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """Why an engine that should have run the artifact gave no figures."""

    error: str
    """Class of ``zenconvert.errors``."""
    reason: str
    """What happened, and how to mend it."""

    @classmethod
    def of(cls, error: ZenError) -> EngineFailure:
        """The failure that an error is."""
        known = (c for c in type(error).__mro__ if c.__module__ == errors.__name__)
        return cls(next(known).__name__, str(error))

    @property
    def of_artifact(self) -> bool:
        """Whether the artifact is to blame, rather than the engine or the machine."""
        return issubclass(self._class, InvalidInput)

    def as_error(self, engine: str) -> ZenError:
        """The error again, with the engine's name before it."""
        return self._class(f"engine {engine} failed: {self.reason}")

    @property
    def _class(self) -> type[ZenError]:
        found = getattr(errors, self.error, None)
        return found if isinstance(found, type) and issubclass(found, ZenError) else EngineFailed

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Text:
    """What both models read."""

    source: str
    ids_sha256: str
    """Of the token ids, window by window."""
    windows: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """Drift of a candidate from a reference, in every engine that ran it."""

    reference: Artifact
    candidate: Artifact
    reference_facts: Facts
    candidate_facts: Facts
    context: int
    """Longest window in tokens."""
    text: Text
    noise: Noise
    runs: tuple[Run, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Engine for this format → why it did not run, where all were asked for."""
    failed: Mapping[str, EngineFailure] = field(default_factory=dict)
    """Engine that was asked for and gave no figures → why."""
    version: str = ""
    """Of zenconvert."""
    place: Path | None = field(default=None, compare=False)
    """The folder that the report was read from."""

    @property
    def engine(self) -> str:
        """The engine of :attr:`overall` and :attr:`languages`: the first that ran."""
        return self.runs[0].engine

    @property
    def overall(self) -> Drift:
        """Drift over every token, in the first engine."""
        return self.runs[0].overall

    @property
    def languages(self) -> dict[str, Drift]:
        """Drift by language, in the first engine."""
        return self.runs[0].languages

    @property
    def worst_language(self) -> str:
        """The language with the largest mean KL divergence, in the first engine."""
        return self.runs[0].summary.worst_language

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as the schema has it. The first engine's run is spread at the top."""
        first, *others = (self._run(run) for run in self.runs)
        return {
            "schema_version": SCHEMA_VERSION,
            "zenconvert": self.version,
            "reference": self.reference.as_dict(),
            "candidate": self.candidate.as_dict(),
            "facts": {
                "reference": self.reference_facts.as_dict(),
                "candidate": self.candidate_facts.as_dict(),
            },
            "context": self.context,
            "text": self.text.as_dict(),
            "bootstrap": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED},
            "noise_floor": self.noise.as_dict(),
            **first,
            "other_engines": others,
            "absent_engines": dict(self.absent),
            "failed_engines": {name: why.as_dict() for name, why in self.failed.items()},
        }

    def _run(self, run: Run) -> dict[str, Any]:
        within = {
            "overall": self.noise.covers(run.overall),
            "languages": {c: self.noise.covers(d, c) for c, d in run.languages.items()},
        }
        return {**run.as_dict(), "within_noise": within}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str = "the report") -> Report:
        """The inverse of :meth:`as_dict`; a verdict in it is not read.

        Raises CorruptFile, naming ``where``, for what does not obey the schema.
        """
        if not isinstance(value, Mapping) or value.get("schema_version") != SCHEMA_VERSION:
            raise CorruptFile(
                f"{where}: no report of zenconvert; expected schema_version {SCHEMA_VERSION}"
            )
        _check_schema(value, where)
        try:
            found = cls(
                reference=Artifact(**value["reference"]),
                candidate=Artifact(**value["candidate"]),
                reference_facts=Facts.from_dict(value["facts"]["reference"]),
                candidate_facts=Facts.from_dict(value["facts"]["candidate"]),
                context=int(value["context"]),
                text=Text(**value["text"]),
                noise=Noise.from_dict(value["noise_floor"]),
                runs=tuple(Run.from_dict(run) for run in (value, *value["other_engines"])),
                absent=value["absent_engines"],
                failed={k: EngineFailure(**v) for k, v in value.get("failed_engines", {}).items()},
                version=value["zenconvert"],
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CorruptFile(f"{where}: the report is malformed: {error!r}") from error
        check_whole(found, where)
        return found

    @classmethod
    def from_json(cls, path: str | Path) -> Report:
        """Read a report file. Raises UsageError when there is none, CorruptFile when it is broken.

        The verdict that a file may hold is not read: it is decided anew.
        """
        path = Path(path)
        try:
            value = parse_json(path, MOST_BYTES)
        except SourceNotFound as error:
            raise UsageError(f"the report cannot be read: {error}") from error
        except InvalidInput as error:
            raise CorruptFile(f"the report cannot be read: {error}") from error
        return replace(cls.from_dict(value, where=str(path)), place=path.resolve().parent)


def check_whole(report: Report, where: str = "the report") -> None:
    """Raise CorruptFile for a report that lacks what is judged, or that contradicts itself: an
    engine without languages, languages without noise floor or documents, intervals that end before
    they begin, weights or perplexities of nothing."""
    if not report.runs:
        raise CorruptFile(f"{where}: no engine measured anything; there is nothing to judge")
    if 0 in {report.reference_facts.parameters, report.candidate_facts.parameters}:
        raise CorruptFile(f"{where}: it is about a model without parameters")
    for run in report.runs:
        for problem in _contradictions(run, report.noise):
            raise CorruptFile(f"{where}: engine {run.engine}{problem}")


def _contradictions(run: Run, noise: Noise) -> Iterator[str]:
    if not run.languages:
        yield " measured no language"
    for absent in sorted(set(run.languages) - set(noise.summary.languages)):
        yield f" measured {absent!r}, of which there is no noise floor"
    told = [document.language for document in run.documents]
    if told != sorted(told) or set(told) != set(run.languages):
        yield f" measured {sorted(run.languages)}, and its documents are of {sorted(set(told))}"
    for scope, drift in (("all", run.overall), *run.languages.items()):
        if not drift.reference_perplexity > 0:
            yield f", {scope}: the reference's perplexity is {drift.reference_perplexity}"
        for figure, (low, high) in drift.intervals.items():
            if low > high:
                yield f", {scope}: the interval of {figure} ends at {high} and begins at {low}"


def _check_schema(value: Mapping[str, Any], where: str) -> None:
    """Raise CorruptFile with what does not obey the schema, and for numbers that are none."""
    problem = problem_of(_schema(), value) or _odd_value(value)
    if problem is not None:
        raise CorruptFile(
            f"{where}: the report is malformed, for it does not obey {SCHEMA.name}: {problem}"
        )


Schema = Callable[[Any], object]
"""Raises JsonSchemaException for a value that does not obey a schema."""


@cache
def _schema() -> Schema:
    return compiled(json.loads(SCHEMA.read_text(encoding="utf-8")))


def compiled(schema: Mapping[str, Any]) -> Schema:
    """A schema as code, which is through megabytes in a second. Raises MissingDependency."""
    try:
        import fastjsonschema
    except ImportError as error:
        raise MissingDependency(
            "reports are checked by fastjsonschema, which cannot be imported here "
            f"({error}); install it: pip install fastjsonschema"
        ) from error
    known: Schema = fastjsonschema.compile(
        {**schema, "$schema": _DRAFT}, use_default=False, use_formats=False
    )
    return known


def problem_of(schema: Schema, value: Any) -> str | None:
    """The first thing of a value that does not obey a schema, with its place; None if all does."""
    from fastjsonschema import JsonSchemaValueException

    try:
        schema(value)
    except JsonSchemaValueException as error:
        place = "/".join(map(str, error.path[1:]))
        return f"{place or 'the whole'}: {error.message.removeprefix(error.name):.200}"
    return None


def _odd_value(value: Any) -> str | None:
    """The first float that is not finite or text that UTF-8 cannot write, and where it is."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError:
        return next(_odd_values(value, ""), "a value that JSON cannot hold")
    return None


def _odd_values(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _odd_values(key, f"{place}/{key}")
            yield from _odd_values(inner, f"{place}/{key}")
    elif isinstance(value, float) and not isfinite(value):
        yield f"{place}: {value} is no number"
    elif isinstance(value, str) and _HALF.search(value):
        yield f"{place}: {value!r:.60} is no text"


def documents(languages: Sequence[Scores]) -> tuple[Document, ...]:
    """Sums of every block, in the order of the language codes."""
    found = []
    for scores in sorted(languages, key=lambda s: s.language):
        for name, windows in scores.blocks():
            parts = [scores.parts[w] for w in windows]
            found.append(
                Document(
                    language=scores.language,
                    name=name,
                    tokens=sum(len(p) for p in parts),
                    reference_nll=float(sum(p.reference_nll.sum() for p in parts)),
                    candidate_nll=float(sum(p.candidate_nll.sum() for p in parts)),
                    kl=float(sum(p.kl.sum() for p in parts)),
                    same_top=int(sum(p.same_top.sum() for p in parts)),
                )
            )
    return tuple(found)
