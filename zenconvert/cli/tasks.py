"""``zenconvert tasks``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zenconvert.cli.config import config_option, ignore_key_option, pre_option
from zenconvert.cli.devices import device_option, taken
from zenconvert.cli.printing import echo, echo_json, echo_table, stages
from zenconvert.verification.engines import ALL, TORCH, engine_names

_ENGINE = click.Choice([name for name in engine_names() if name != ALL])


@click.command()
@click.argument("reference", metavar="REFERENCE")
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--tasks", "names", required=True, metavar="NAME,…",
    help="Tasks, groups or patterns of lm-evaluation-harness, e.g. mmlu,gsm8k,mgsm_direct_ja.",
)  # fmt: skip
@click.option(
    "--engine", type=_ENGINE, default=TORCH, show_default=True,
    help="What runs the candidate; torch cannot write text.",
)  # fmt: skip
@click.option("--reference-engine", type=_ENGINE, help="What runs the reference.")
@click.option(
    "--include", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with task files of your own.",
)  # fmt: skip
@click.option("--fewshot", type=click.IntRange(min=0), help="Examples before every question.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many items of every task.")
@config_option("CANDIDATE")
@pre_option
@ignore_key_option
@device_option()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tasks(reference: str, candidate: str, names: str, as_json: bool, **given: Any) -> None:
    """Ask both models the same questions and count the answers that changed.

    Needs the extra zenconvert[tasks].
    """
    from zenconvert.verification.tasks import compare_tasks

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    given["device"] = taken(given["device"])
    with stages(quiet=as_json) as progress:
        drift = compare_tasks(reference, candidate, wanted, progress=progress, **given)
    if as_json:
        echo_json(drift.as_dict())
        return
    echo_table(
        ("task", "items", "reference", "candidate", "broken", "mended", "flips", "p", "verdict"),
        [
            (
                f"{r.task}: {r.metric}",
                str(r.items),
                f"{100 * r.reference:.1f} %",
                f"{100 * r.candidate:.1f} %",
                str(r.broken),
                str(r.mended),
                f"{100 * r.flips:.1f} %",
                f"{r.p_value:.3g}",
                "worse" if r.worse else "–",
            )
            for r in drift.results
        ],
    )
    for label in drift.unpaired:
        echo(f"{label} is no yes or no: not paired", err=True)
