"""The options that say which texts go through the reference model, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from zenconvert.cli.devices import device_option
from zenconvert.errors import UsageError
from zenconvert.model.target import parse_size
from zenconvert.solve.calibration_texts import TOKENS_PER_LANGUAGE

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    options: list[Decorator] = [
        click.option(
            "--samples", help="File, folder or hub:ORG/NAME[:split]; the bundled texts by default."
        ),
        click.option("--languages", metavar="en,zh,…", help="Only these languages."),
        click.option(
            "--language-weights", metavar="en=2,zh=1,…", help="Weights; 1 where not given."
        ),
        click.option(
            "--tokens-per-language",
            type=click.IntRange(min=2),
            help=f"Most tokens to read of each language; {TOKENS_PER_LANGUAGE} by default.",
        ),
        click.option(
            "--context", type=click.IntRange(min=4), help="Longest window; 2048 or the model's."
        ),
        click.option("--seed", type=int, help="Draws the documents; 0 by default."),
        device_option(),
        click.option(
            "--dtype",
            type=click.Choice(["f32", "bf16", "f16"]),
            help="bf16 on CUDA, else f32 by default.",
        ),
        click.option(
            "--all-experts", is_flag=True, help="Statistics of every expert over all tokens."
        ),
        click.option(
            "--fisher", is_flag=True, help="Walk back, too: how much the embedding's errors cost."
        ),
        click.option("--max-vram", metavar="SIZE", help="Device memory to use, e.g. 20G."),
        click.option("--max-ram", metavar="SIZE", help="Main memory to use."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True)
class Sampling:
    """The options that were given."""

    device: str
    values: dict[str, Any]
    """Arguments of the API, without the device; those left at their defaults are not there."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that were given, as on the command line."""
        return tuple("--" + name.replace("_", "-") for name in self.values)


def take_sampling(given: dict[str, Any]) -> Sampling:
    """Take the options out of a command's arguments. Raises UsageError."""
    device = given.pop("device")
    values = {
        "samples": given.pop("samples"),
        "languages": codes(given.pop("languages")),
        "language_weights": _weights(given.pop("language_weights")),
        "tokens_per_language": given.pop("tokens_per_language"),
        "context": given.pop("context"),
        "seed": given.pop("seed"),
        "dtype": given.pop("dtype"),
        "all_experts": given.pop("all_experts") or None,
        "fisher": given.pop("fisher") or None,
        "max_vram": _size(given.pop("max_vram")),
        "max_ram": _size(given.pop("max_ram")),
    }
    return Sampling(device, {name: value for name, value in values.items() if value is not None})


def codes(text: str | None) -> list[str] | None:
    """``en,zh`` as a list; None where nothing was given. Raises UsageError for one of nothing."""
    if text is None:
        return None
    found = [code.strip() for code in text.split(",") if code.strip()]
    if not found:
        raise UsageError(f"{text!r} names nothing; write names with commas between them")
    return found


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


def _weights(text: str | None) -> dict[str, float] | None:
    weights = {}
    for pair in codes(text) or ():
        code, _, number = pair.partition("=")
        try:
            weights[code.strip()] = float(number)
        except ValueError as error:
            raise UsageError(f"language weight {pair!r} is malformed; write en=2,zh=1") from error
    return weights if text is not None else None
