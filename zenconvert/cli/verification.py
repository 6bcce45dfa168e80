"""``zenconvert verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zenconvert.cli.printing import echo_table, stages


@click.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--engine",
    type=click.Choice(["torch", "llamacpp", "auto-gptq", "autoawq"]),
    default="torch",
    show_default=True,
    help="What runs the candidate.",
)
@click.option("--languages", metavar="en,zh,…", help="Only these languages.")
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True),
    help="JSONL with language and text, or plain text; bundled texts by default.",
)
@click.option(
    "--context", type=click.IntRange(min=4), default=512, show_default=True, help="Window length."
)
@click.option("--device", default="cpu", show_default=True, help="torch device.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of other engines than torch.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def verify(
    reference: str, candidate: str, languages: str | None, json_file: Path | None, **given: Any
) -> None:
    """Measure perplexity and logit drift of CANDIDATE from REFERENCE, per language."""
    from zenconvert.verification.run import verify as run

    codes = [c.strip() for c in languages.split(",") if c.strip()] if languages else None
    with stages() as progress:
        report = run(reference, candidate, languages=codes, progress=progress, **given)
    rows = [("overall", report.overall), *report.languages.items()]
    echo_table(
        ("language", "tokens", "ppl ref", "ppl cand", "ratio", "KL mean", "KL p99", "top-1"),
        [
            (
                name,
                str(d.tokens),
                f"{d.reference_perplexity:.3f}",
                f"{d.candidate_perplexity:.3f}",
                f"{d.perplexity_ratio:.4f}",
                f"{d.kl_mean:.5f}",
                f"{d.kl_p99:.4f}",
                f"{100 * d.top1:.2f} %",
            )
            for name, d in rows
        ],
    )
    click.echo(f"worst language: {report.worst_language} (engine {report.engine})")
    if json_file is not None:
        text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
        json_file.write_text(text, encoding="utf-8")
