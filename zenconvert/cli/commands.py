"""All commands."""

from __future__ import annotations

import signal
from typing import Any

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


class _Commands(click.Group):
    """Commands that other signals than Ctrl-C may end, which needs no new line after ``^C``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Of a command; for click the end by a signal is an Abort."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            if interrupt.args in {(), (signal.SIGINT,)}:
                raise
            raise click.Abort from interrupt


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
