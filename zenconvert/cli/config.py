"""The options ``--config``, ``--pre`` and ``--ignore-key`` of commands that open a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def config_option(whose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--config FILE`` for the model of one argument."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help=f"config.json of {whose}, where that is an ONNX graph without one.",
    )


pre_option = click.option(
    "--pre", metavar="NAME", help="Pre-tokenizer of a GGUF file that does not say how it cuts text."
)

ignore_key_option = click.option(
    "--ignore-key",
    "ignored_keys",
    multiple=True,
    metavar="NAME",
    help="Key of the model that is not known here and changes nothing. Repeatable.",
)
