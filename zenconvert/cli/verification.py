"""``zenconvert verify``, ``gate`` and ``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zenconvert.base.escaping import json_text
from zenconvert.cli.config import config_option, ignore_key_option, pre_option
from zenconvert.cli.devices import device_option, taken
from zenconvert.cli.outputs import (
    Written,
    append_side_file,
    check_models,
    check_outputs,
    write_side_file,
)
from zenconvert.cli.printing import echo, echo_json, echo_table, size, stages, with_warnings
from zenconvert.cli.sampling import codes
from zenconvert.errors import GateFailed, GateInconclusive
from zenconvert.verification.engines import TORCH, engine_names

if TYPE_CHECKING:
    from zenconvert.verification.comparison import Comparison
    from zenconvert.verification.gate import Verdict
    from zenconvert.verification.report import Report, Run

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OUT = click.Path(path_type=Path, dir_okay=False)
_AGAINST = click.option(
    "--against", type=_FILE, metavar="PREVIOUS.json",
    help="Gate against the report of the last release too.",
)  # fmt: skip
_SUMMARY = click.option(
    "--summary", type=_OUT, help="Append a Markdown summary to this file (CI job summaries)."
)
_HTML = click.option("--html", type=_OUT, help="Write a self-contained HTML page here.")


@click.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--engine",
    type=click.Choice(engine_names()),
    default=TORCH,
    show_default=True,
    help="What runs the candidate; all: every engine that can run it here.",
)
@click.option("--languages", metavar="en,zh,…", help="Only these languages.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True),
    help="JSONL with language and text, or plain text; bundled texts by default.",
)
@click.option(
    "--context",
    type=click.IntRange(min=4),
    default=512,
    show_default=True,
    help="Window length, up to the model's context.",
)
@config_option("CANDIDATE")
@pre_option
@ignore_key_option
@device_option()
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the native engines.")
@click.option("--json", "json_file", type=_OUT, help="Write the report here.")
@_HTML
@_SUMMARY
@click.option("--gate", "policy", metavar="POLICY", help="Judge by a policy file, or by 'default'.")
@_AGAINST
def verify(
    reference: str,
    candidate: str,
    languages: str | None,
    json_file: Path | None,
    policy: str | None,
    against: Path | None,
    config: Path | None,
    html: Path | None,
    summary: Path | None,
    **given: Any,
) -> None:
    """Measure perplexity and logit drift of CANDIDATE from REFERENCE, per language.

    An engine that dies, hangs or is missing costs its own row where several were asked for: the
    others' figures are printed and written, and the exit code is that of the failure (6 for an
    engine that does not work here). With --gate it is the verdict's.
    """
    from zenconvert.verification.gate import gate as judge
    from zenconvert.verification.measurement import verify as run
    from zenconvert.verification.policy import Policy
    from zenconvert.verification.report import Report

    if against is not None and policy is None:
        raise click.UsageError("--against needs --gate")
    written = {"--json": json_file, "--html": html, "--summary": summary}
    check_outputs(
        {
            "REFERENCE": reference, "CANDIDATE": candidate, "--text": given["text"],
            "--config": config, "--gate": policy, "--against": against,
        },
        written,
    )  # fmt: skip
    check_models({"REFERENCE": reference}, written)
    check_models({"CANDIDATE": candidate}, written, config)
    wanted = codes(languages)
    earlier = Report.from_json(against) if against is not None else None
    known = Policy.load(policy) if policy is not None else None  # before the work
    given["device"] = taken(given["device"])
    with stages() as progress:
        report = run(
            reference, candidate, languages=wanted, config=config, progress=progress, **given
        )
    verdict = None
    if known is not None:
        verdict = judge(report, known, against=earlier, config=config)
    side = Written()
    if json_file is not None:  # first: the terminal may be full or gone after hours of work
        with side.trying():
            _write_report(json_file, report, verdict)
    _write_pages(report, verdict, html, summary, side)
    _print(report)
    if verdict is not None:
        _say(verdict)
    side.raise_first()
    if verdict is not None:
        _end(verdict)
    for name, why in report.failed.items():
        raise why.as_error(name)


@click.command()
@click.argument("report_file", metavar="REPORT.json", type=_FILE)
@click.option("--policy", default="default", show_default=True, help="A policy file, or 'default'.")
@_AGAINST
@config_option("the report's candidate")
@_HTML
@_SUMMARY
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def gate(
    report_file: Path,
    policy: str,
    against: Path | None,
    config: Path | None,
    html: Path | None,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Judge a report. Refuses one that is not about the files that it names.

    Exit codes: 0 PASS, 1 FAIL, 6 INCONCLUSIVE or ANOMALOUS.
    """
    from zenconvert.verification.file_check import places_of
    from zenconvert.verification.gate import gate as judge
    from zenconvert.verification.report import Report

    written = {"--html": html, "--summary": summary}
    check_outputs(
        {"REPORT": report_file, "--policy": policy, "--against": against, "--config": config},
        written,
    )
    report = Report.from_json(report_file)
    check_models(places_of(report), written, config)
    earlier = Report.from_json(against) if against is not None else None
    verdict, side = judge(report, policy, against=earlier, config=config), Written()
    _write_pages(report, verdict, html, summary, side)
    if as_json:
        echo_json(verdict.as_dict())
    else:
        _say(verdict)
    side.raise_first()
    _end(verdict)


@click.command()
@click.argument("report_files", metavar="REPORT.json…", nargs=-1, required=True, type=_FILE)
@click.option("--gate", "policy", metavar="POLICY", help="Show what this policy says of each.")
@_HTML
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    report_files: Sequence[Path], policy: str | None, html: Path | None, as_json: bool
) -> None:
    """Put several reports side by side: ranks, and size against drift.

    Ends with 0 whatever the verdicts are; gate is what judges.
    """
    from zenconvert.verification.comparison import compare as put_side_by_side
    from zenconvert.verification.comparison import paths_of
    from zenconvert.verification.file_check import places_of
    from zenconvert.verification.gate import gate as judge
    from zenconvert.verification.report import Report

    read = {str(path): path for path in report_files}
    check_outputs({**read, "--gate": policy}, {"--html": html})
    comparison = put_side_by_side([Report.from_json(path) for path in report_files])
    for report in comparison.reports:
        check_models(places_of(report), {"--html": html})
    verdicts: dict[str, Verdict] = {}
    if policy is not None:
        names = paths_of(comparison.reports)
        verdicts = {n: judge(r, policy) for n, r in zip(names, comparison.reports, strict=True)}
    side = Written()
    if html is not None:
        from zenconvert.verification.rendering import comparison_page

        with side.trying():
            write_side_file(html, comparison_page(comparison, verdicts))
    if as_json:
        judged = {path: verdict.as_dict() for path, verdict in verdicts.items()}
        echo_json({**comparison.as_dict(), **({"verdicts": judged} if judged else {})})
    else:
        for path, verdict in verdicts.items():
            echo(f"{verdict.outcome}  {path} (policy {verdict.policy}, tier {verdict.tier})")
        _print_comparison(comparison)
    side.raise_first()


def _print(report: Report) -> None:
    noise = report.noise
    for run in report.runs:
        _print_run(run)
        still = [code for code, drift in run.languages.items() if noise.covers(drift, code)]
        if noise.covers(run.overall):
            still.insert(0, "overall")
        if still:
            echo(f"indistinguishable from the reference: {', '.join(still)}")
        for problem in run.proof.problems:
            echo(f"problem: {problem}")
    echo(
        f"noise floor: KL {noise.summary.overall.kl_mean:.2e}, the reference in {noise.label}"
        + (" (f16 overflows)" if noise.overflows else "")
    )
    if (predicted := report.candidate_facts.predicted_kl) is not None:
        echo(f"predicted when its types were chosen: KL mean {predicted:.5f}")
    for name, reason in report.absent.items():
        echo(f"engine {name} did not run: {reason}")
    for name, why in report.failed.items():
        echo(f"engine {name} failed: {why.reason}")


def _print_run(run: Run) -> None:
    from zenconvert.verification.figures import figure, span

    rows = [("overall", run.overall), *run.languages.items()]
    head = ("language", "tokens", "ppl ref", "ppl cand", "ratio", "KL mean", "KL 95 %", "KL p99")
    echo_table(
        (*head, "bits/byte", "top-1"),
        [
            (
                name,
                str(drift.tokens),
                figure(drift, "perplexity.reference"),
                figure(drift, "perplexity.candidate"),
                figure(drift, "perplexity.ratio"),
                f"{drift.kl_mean:.5f}",
                span(drift, "kl.mean") or "unknown",
                f"{drift.kl_p99:.4f}",
                figure(drift, "bits_per_byte.candidate"),
                figure(drift, "top1"),
            )
            for name, drift in rows
        ],
    )
    echo(f"worst language: {run.summary.worst_language} (engine {run.engine})")


def _print_comparison(comparison: Comparison) -> None:
    from zenconvert.verification.figures import figure, span

    for engine, variants in comparison.engines.items():
        echo(f"engine {engine}")
        echo_table(
            ("variant", "rank", "size", "KL mean", "KL 95 %", "ratio", "top-1", "worst", "front"),
            [
                (
                    v.name,
                    str(v.rank),
                    size(v.bytes),
                    figure(v.run.overall, "kl.mean"),
                    span(v.run.overall, "kl.mean"),
                    figure(v.run.overall, "perplexity.ratio"),
                    figure(v.run.overall, "top1"),
                    v.run.summary.worst_language,
                    "yes" if v.on_front else "no",
                )
                for v in variants
            ],
        )
    echo("variants of one rank cannot be told apart")


def _write_report(path: Path, report: Report, verdict: Verdict | None) -> None:
    value = with_warnings(report.as_dict())
    if verdict is not None:
        value["verdict"] = verdict.as_dict()
    write_side_file(path, json_text(value, indent=2) + "\n")


def _write_pages(
    report: Report, verdict: Verdict | None, html: Path | None, summary: Path | None, side: Written
) -> None:
    if html is not None:
        from zenconvert.verification.rendering import report_page

        with side.trying():
            write_side_file(html, report_page(report, verdict))
    if summary is not None:
        from zenconvert.verification.markdown import summary as lines

        with side.trying():
            append_side_file(summary, lines(report, verdict))


def _say(verdict: Verdict) -> None:
    echo(f"{verdict.outcome} by policy {verdict.policy}, tier {verdict.tier}")
    for warning in verdict.warnings:
        echo(f"warning: {warning}")
    for note in verdict.notes:
        echo(f"note: {note}")


def _end(verdict: Verdict) -> None:
    """End with the exit code of a verdict."""
    if verdict.exit_code:
        kind = GateFailed if verdict.exit_code == GateFailed.exit_code else GateInconclusive
        raise kind(f"{verdict.outcome}\n" + "\n".join(f"  - {r}" for r in verdict.reasons))
