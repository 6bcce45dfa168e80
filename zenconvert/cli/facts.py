"""``zenconvert inspect`` and ``zenconvert diff``."""

from __future__ import annotations

from pathlib import Path

import click

from zenconvert.cli.config import config_option, pre_option
from zenconvert.cli.printing import echo, echo_json, echo_table, size
from zenconvert.errors import several


@click.command()
@click.argument("source", metavar="SRC")
@config_option("SRC")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source: str, config: Path | None, as_json: bool) -> None:
    """Show what a checkpoint is. Reads headers only."""
    from zenconvert import inspection

    facts = inspection.inspect(source, config)
    if as_json:
        echo_json(facts.as_dict())
        return
    hp = facts.hyperparameters
    echo(f"{facts.path}")
    echo(
        f"format        {facts.format}, {several(len(facts.files), 'weight file', 'weight files')}"
    )
    echo(f"architecture  {facts.architecture}")
    echo(f"parameters    {facts.parameters:,}")
    echo(f"weights       {size(facts.bytes)}, {facts.bits_per_weight:.2f} bits each")
    echo(
        f"shape         {several(hp.layers, 'layer', 'layers')}, hidden {hp.hidden}, ffn {hp.ffn}, "
        f"heads {hp.heads}/{hp.kv_heads} of {hp.head_dim}, vocabulary {hp.vocab}, "
        f"context {hp.context}"
        + (f", {hp.experts} experts ({hp.experts_used} used)" if hp.experts else "")
    )
    echo()
    echo_table(
        ("encoding", "tensors", "size"),
        [(name, str(count), size(total)) for name, (count, total) in facts.encodings.items()],
    )


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@config_option("B")
@pre_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(first: str, second: str, config: Path | None, pre: str | None, as_json: bool) -> None:
    """Compare two checkpoints: config, tokenizer and decoded weights."""
    from zenconvert import difference

    found = difference.diff(first, second, config=config, pre=pre)
    if as_json:
        echo_json(found.as_dict())
        return
    for key, (a, b) in found.config.items():
        echo(f"config {key}: {a} ≠ {b}")
    for part in found.tokenizer:
        echo(f"tokenizer {part} differs")
    for name in found.only_first:
        echo(f"only in {first}: {name}")
    for name in found.only_second:
        echo(f"only in {second}: {name}")
    changed = [t for t in found.tensors if not t.equal]
    if changed:
        echo_table(
            ("tensor", "A", "B", "max |Δ|", "relative"),
            [(t.name, *t.encodings, f"{t.max_abs:.3g}", f"{t.relative:.3g}") for t in changed],
        )
    equal = len(found.tensors) - len(changed)
    echo(f"{equal} of {len(found.tensors)} shared tensors hold the same numbers")
