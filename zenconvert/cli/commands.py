"""All commands."""

from __future__ import annotations

import click

from zenconvert.cli.calibration import calibrate
from zenconvert.cli.conversion import convert, plan
from zenconvert.cli.doctor import doctor
from zenconvert.cli.facts import diff, inspect
from zenconvert.cli.printing import hearing_warnings
from zenconvert.cli.publication import release
from zenconvert.cli.tasks import tasks
from zenconvert.cli.verification import compare, gate, verify
from zenconvert.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zenconvert")
@click.pass_context
def cli(context: click.Context) -> None:
    """Convert, quantize and verify language-model checkpoints.

    SRC is a folder, a .gguf file, a Hub id (organisation/name) or builtin:zen-nano.
    TARGET is format[:type], e.g. gguf:q4_k_m, gguf:f16, hf:bf16.
    """
    context.with_resource(hearing_warnings())


for command in (
    inspect, plan, convert, calibrate, verify, tasks, gate, compare, diff, release, doctor
):  # fmt: skip
    cli.add_command(command)
