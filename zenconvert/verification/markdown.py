"""A report as a few lines of Markdown, for the summary of a CI job."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zenconvert.verification.figures import figure, megabytes, span
from zenconvert.verification.gate import Outcome, Verdict
from zenconvert.verification.report import Report, Run

_SIGN: Final = re.compile(r"[\\`*_\[\]|~#@$!]")
_FIRST: Final = re.compile(r"\A(?:[>=]|[-+](?=[-\s]|\Z)|\d+(?=[.)](?:\s|\Z)))")
_LINK: Final = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
_SIGNS: Final = {Outcome.PASS: "✅", Outcome.FAIL: "❌"}


def summary(report: Report, verdict: Verdict | None = None) -> str:
    """Verdict, reasons and one table an engine, worst language first."""
    return "\n".join(_lines(report, verdict)) + "\n"


def _lines(report: Report, verdict: Verdict | None) -> Iterator[str]:
    facts = report.candidate_facts
    name = escape(Path(report.candidate.path).name)
    yield f"### {_SIGNS.get(verdict.outcome, '⚠️') + ' ' if verdict else ''}{name}"
    yield ""
    if verdict is not None:
        by = f"policy {escape(verdict.policy)}, tier {escape(str(verdict.tier))}"
        yield f"**{verdict.outcome}** by {by}"
        yield from (f"- {escape(reason)}" for reason in verdict.reasons)
        yield from (f"- warning: {escape(warning)}" for warning in verdict.warnings)
        yield from (f"- {escape(note)}" for note in verdict.notes)
        yield ""
    yield (
        f"{megabytes(facts.bytes)}, {facts.bits_per_weight:.2f} bits a weight, "
        f"against {escape(report.reference.path)}; noise floor "
        f"{report.noise.summary.overall.kl_mean:.2e} nats ({escape(report.noise.label)})"
    )
    for run in report.runs:
        yield from engine_table(run)
    if verdict is None and report.failed:
        yield ""
        for engine, why in report.failed.items():
            yield f"- {escape(f'engine {engine} failed: {why.reason}')}"


def engine_table(run: Run) -> Iterator[str]:
    """The lines of a run's table, the worst language first."""
    yield ""
    yield f"| {escape(run.engine)} | KL mean | 95 % | perplexity ratio | 95 % | top-1 | 95 % |"
    yield "|---|--:|---|--:|---|--:|---|"
    worst_first = sorted(run.languages.items(), key=lambda item: -item[1].kl_mean)
    for name, drift in (("all", run.overall), *worst_first):
        cells = [name]
        for column in ("kl.mean", "perplexity.ratio", "top1"):
            cells += [figure(drift, column), span(drift, column)]
        yield f"| {' | '.join(escape(cell) for cell in cells)} |"


def escape(text: str) -> str:
    """Foreign text as one line that cannot break out of a table, become markup or a link, and
    begins no list, quotation, heading or block of code."""
    line = _SIGN.sub(r"\\\g<0>", _one_line(text).strip()).replace("&", "&amp;")
    line = _FIRST.sub(_entities, line.replace("<", "&lt;"))
    return _LINK.sub(lambda match: f"&#{ord(match[0])};", line)


def _entities(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(sign)};" for sign in match[0])


def code(text: str) -> str:
    """Foreign text as a code span in one line, fit for a table."""
    line = _one_line(text).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """Foreign text as a block of code."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _one_line(text: str) -> str:
    """Without control signs and signs that turn the direction of what follows."""
    return "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
