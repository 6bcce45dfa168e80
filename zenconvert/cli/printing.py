"""What the commands share: JSON, sizes, tables and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_UNITS = ("B", "kB", "MB", "GB", "TB")


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:.3g} {_UNITS[power]}" if count < 1000 else f"{count:.0f} {_UNITS[power]}"


def echo_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned and the others right-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(cells).rstrip())


@contextmanager
def stages(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of named stages: bars on a terminal, elsewhere a line as each stage begins."""
    if quiet:
        yield lambda name, done, total: None
        return
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(name: str, done: int, total: int) -> None:
            if name not in seen:
                seen.add(name)
                click.echo(f"{name} …", err=True)

        yield line
        return
    with new_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield update


def new_bar() -> Bar:
    """A progress bar on stderr, with the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
