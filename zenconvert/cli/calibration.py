"""``zenconvert calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zenconvert.cli.config import config_option, ignore_key_option, pre_option
from zenconvert.cli.devices import taken
from zenconvert.cli.printing import echo, echo_json, echo_table, size, stages
from zenconvert.cli.sampling import codes, sampling_options, take_sampling
from zenconvert.model.target import parse_size

if TYPE_CHECKING:
    from zenconvert.solve.calibration import Calibration


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "purposes",
    metavar="gguf,gptq,awq",
    default="gguf",
    show_default=True,
    help="What the statistics are for; gptq and awq take second moments, which are large.",
)
@config_option("SRC")
@pre_option
@ignore_key_option
@sampling_options
@click.option(
    "--hidden-states", "final_states", is_flag=True, help="Keep the final hidden states, too."
)
@click.option(
    "--imatrix", type=click.Path(path_type=Path), help="Also write a llama.cpp imatrix here."
)
@click.option("--max-disk", metavar="SIZE", help="Disk space to use.")
@click.option("--force", is_flag=True, help="Replace existing outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    source: str, out: Path, purposes: str, max_disk: str | None, as_json: bool, **given: Any
) -> None:
    """Measure per language what every linear module of SRC reads.

    OUT is a statistics file for later conversions, or a llama.cpp imatrix if it ends in .gguf. A
    run that was interrupted goes on when it is started again.
    """
    from zenconvert.solve.calibration import calibrate as run

    sampling = take_sampling(given)
    with stages(quiet=as_json) as progress:
        done = run(
            source,
            out,
            purposes=codes(purposes) or [],
            device=taken(sampling.device),
            **sampling.values,
            max_disk=parse_size(max_disk) if max_disk is not None else None,
            announce=None if as_json else lambda count: _announce(out, count),
            progress=lambda at: progress(at.stage, at.done * at.layers, at.layers),
            **given,
        )
    if as_json:
        echo_json(done.as_dict())
    else:
        _print(done)


def _announce(out: Path, count: int) -> None:
    echo(f"{out} takes {size(count)} of statistics", err=True)


def _print(done: Calibration) -> None:
    echo_table(
        (
            "language",
            "tokens",
            "windows",
            "documents",
            "unused",
            "split",
            "cut tokens",
            "vocabulary",
        ),
        [
            (
                part.language,
                str(part.tokens),
                str(part.windows),
                str(part.documents),
                str(part.unused_documents),
                str(part.split_documents),
                str(part.cut_tokens),
                f"{100 * part.vocabulary:.1f} %",
            )
            for part in done.languages
        ],
    )
    if done.experts is not None:
        echo(f"{len(done.experts.never)} of {done.experts.experts} experts never reached")
        for language, missed in done.experts.by_language.items():
            if missed:
                shown = " ".join(missed[:8]) + (" …" if len(missed) > 8 else "")
                echo(f"not reached in {language}: {len(missed)} ({shown})")
    for path in done.files:
        echo(f"{path} ({size(path.stat().st_size)})")
