"""The option ``--device``, and which one was taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from zenconvert.base.machine import AUTO, take_device
from zenconvert.cli.printing import echo


def device_option() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--device``."""
    return click.option(
        "--device",
        default=AUTO,
        show_default=True,
        help="torch device; auto: the GPU where torch has one, else the CPU.",
    )


def taken(device: str) -> str:
    """The device that is meant, told to people. Raises UsageError when torch cannot use it."""
    found = take_device(device)
    why = ""
    if device == AUTO:
        why = " (torch sees no GPU)" if found == "cpu" else " (the GPU that torch sees)"
    echo(f"device: {found}{why}", err=True)
    return found


def tell_rounding(device: str | None) -> None:
    """Say which device rounded, or that there was no use for the one that was named."""
    source = click.get_current_context().get_parameter_source("device")
    if device is not None:
        echo(f"device: {device}", err=True)
    elif source is ParameterSource.COMMANDLINE:
        echo("device: --device had no use: there was nothing to solve or to round", err=True)
