"""A release as a few lines of Markdown, for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zenconvert.errors import several
from zenconvert.verification.figures import figure, megabytes, span
from zenconvert.verification.markdown import escape

if TYPE_CHECKING:
    from zenconvert.publication.facts import VariantFacts
    from zenconvert.publication.release_run import ReleaseResult

_SIGNS: Final = {"PASS": "✅", "FAIL": "❌", "ERROR": "❌"}
_HEAD: Final = (
    "variant", "verdict", "size", "engine", "KL mean", "95 %", "top-1", "worst language"
)  # fmt: skip


def summary(result: ReleaseResult) -> str:
    """One table of all variants and engines, then every reason why something did not pass."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: ReleaseResult) -> Iterator[str]:
    count = several(len(result.facts.variants), "variant", "variants")
    yield f"### {escape(result.facts.name)}: {count}"
    yield ""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|---|---|--:|---|--:|---|--:|---|"
    for variant in result.facts.variants:
        for cells in _rows(variant):
            yield f"| {' | '.join(map(escape, cells))} |"
    yield ""
    for variant in result.facts.variants:
        if variant.verdict is not None and variant.outcome != "PASS":
            for reason in variant.verdict.reasons:
                yield f"- {escape(f'{variant.name}: {reason}')}"
    for title, failure in result.failures.items():
        yield f"- {escape(f'{title}: {failure.text}')}"
    for one in result.disagreements:
        yield f"- {escape(str(one))}"


def _rows(variant: VariantFacts) -> Iterator[tuple[str, ...]]:
    sign = _SIGNS.get(variant.outcome, "⚠️")
    size = megabytes(variant.size) if variant.files else ""
    head = (variant.name, f"{sign} {variant.outcome}", size)
    if variant.report is None:
        yield (*head, "", "", "", "", "")
        return
    for run in variant.report.runs:
        yield (
            *head,
            run.engine,
            figure(run.overall, "kl.mean"),
            span(run.overall, "kl.mean"),
            figure(run.overall, "top1"),
            run.summary.worst_language,
        )
