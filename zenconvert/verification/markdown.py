"""A report as a few lines of Markdown, for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zenconvert.verification.figures import figure, megabytes, span
from zenconvert.verification.gate import Outcome, Verdict
from zenconvert.verification.report import Report, Run

_SIGNS = {Outcome.PASS: "✅", Outcome.FAIL: "❌"}


def summary(report: Report, verdict: Verdict | None = None) -> str:
    """Verdict, reasons and one table an engine, worst language first."""
    return "\n".join(_lines(report, verdict)) + "\n"


def _lines(report: Report, verdict: Verdict | None) -> Iterator[str]:
    facts = report.candidate_facts
    name = _cell(Path(report.candidate.path).name)
    yield f"### {_SIGNS.get(verdict.outcome, '⚠️') + ' ' if verdict else ''}{name}"
    yield ""
    if verdict is not None:
        yield f"**{verdict.outcome}** by policy {_cell(verdict.policy)}, tier {verdict.tier}"
        yield from (f"- {_cell(reason)}" for reason in verdict.reasons)
        yield from (f"- warning: {_cell(warning)}" for warning in verdict.warnings)
        yield from (f"- {_cell(note)}" for note in verdict.notes)
        yield ""
    yield (
        f"{megabytes(facts.bytes)}, {facts.bits_per_weight:.2f} bits a weight, "
        f"against {_cell(report.reference.path)}; noise floor "
        f"{report.noise.summary.overall.kl_mean:.2e} nats ({report.noise.label})"
    )
    for run in report.runs:
        yield from _table(run)


def _table(run: Run) -> Iterator[str]:
    yield ""
    yield f"| {run.engine} | KL mean | 95 % | perplexity ratio | 95 % | top-1 | 95 % |"
    yield "|---|--:|---|--:|---|--:|---|"
    worst_first = sorted(run.languages.items(), key=lambda item: -item[1].kl_mean)
    for name, drift in (("all", run.overall), *worst_first):
        cells = [name]
        for column in ("kl.mean", "perplexity.ratio", "top1"):
            cells += [figure(drift, column), span(drift, column)]
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that cannot break out of a table or become markup."""
    plain = text.replace("\\", "\\\\").replace("\n", " ").replace("<", "&lt;")
    for sign in "|`*_[]":
        plain = plain.replace(sign, "\\" + sign)
    return plain
