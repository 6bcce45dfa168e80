"""What the commands share: text that is safe on a terminal, JSON, sizes, tables and progress.

Names, patterns and ids come from files of strangers: all text goes through
``zenconvert.base.escaping``.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TextIO

import click

from zenconvert.base.escaping import json_text, plain
from zenconvert.errors import InputWarning

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import Task, TaskID

_UNITS = ("B", "kB", "MB", "GB", "TB")
_PREFIXES = ("", " k", " M", " G", " T")
_LINE_S = 30.0  # between two lines of a stage


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line, in the stream's own encoding: by itself, click takes UTF-8 for ASCII.

    What standard error cannot take is lost: it is no reason to end the work.
    """
    with suppress(OSError) if err else nullcontext():
        click.echo(plain(text), file=sys.stderr if err else sys.stdout)


_heard: dict[str, None] = {}
"""What this command was warned of."""


@contextmanager
def hearing_warnings() -> Iterator[None]:
    """Print every warning about an input once, as it comes, and keep it for JSON. What else warns
    or logs meanwhile is safe on a terminal as well."""
    _heard.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, InputWarning):  # libraries show names, too
                shown = warnings.formatwarning(message, category, filename, lineno, line)
                echo(shown.rstrip("\n"), err=True)
            elif (text := str(message)) not in _heard:
                _heard[text] = None
                echo(f"warning: {text}", err=True)

        warnings.showwarning = show
        usual = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_PlainRecord)
        try:
            yield
        finally:
            logging.setLogRecordFactory(usual)


class _PlainRecord(logging.LogRecord):
    """What a library logs, safe on a terminal."""

    def getMessage(self) -> str:
        return plain(super().getMessage())


def echo_json(value: Any) -> None:
    """Print a value as JSON; a table has the warnings about the inputs, too."""
    click.echo(json_text(with_warnings(value), indent=2, default=str), file=sys.stdout)


def with_warnings(value: Any) -> Any:
    """A table with what the command was warned of; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {**value, "warnings": list(dict.fromkeys([*value.get("warnings", ()), *_heard]))}


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:.3g} {_UNITS[power]}" if count < 1000 else f"{count:.0f} {_UNITS[power]}"


def echo_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned and the others right-aligned."""
    head, rows = _cells(head), [_cells(row) for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        echo("  ".join(cells).rstrip())


def _cells(row: Sequence[str]) -> list[str]:
    return [plain(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row]


@contextmanager
def stages(*, quiet: bool = False) -> Iterator[Callable[[str, float, int], None]]:
    """Progress of named stages with rate and time left: bars on a terminal, elsewhere a line as a
    stage begins and two a minute while it lasts."""
    if quiet:
        yield lambda name, done, total: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with new_bar() as bar:
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: float, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(plain(name), total=total)
            bar.update(tasks[name], completed=done)

        yield update


class _Lines:
    """Progress as plain lines."""

    def __init__(self) -> None:
        self.begun: dict[str, tuple[float, float]] = {}
        self.told: dict[str, float] = {}

    def __call__(self, name: str, done: float, total: int) -> None:
        now = time.monotonic()
        if name not in self.begun:
            self.begun[name], self.told[name] = (now, done), now
            echo(f"{name} …", err=True)
        elif now - self.told[name] >= _LINE_S and done < total:
            self.told[name] = now
            begun, before = self.begun[name]
            line = f"{name}: {done / total:.0%}"
            if done > before:
                rate = (done - before) / (now - begun)
                line += f", {speed(rate)}, {duration((total - done) / rate)} left"
            echo(line, err=True)


def speed(rate: float) -> str:
    """Steps a second, or seconds a step where these are long."""
    if rate < 1:
        return f"{1 / rate:.3g} s each"
    power = 0
    while rate >= 1000 and power < len(_PREFIXES) - 1:
        rate /= 1000
        power += 1
    return f"{rate:.3g}{_PREFIXES[power]}/s"


def duration(seconds: float) -> str:
    """In the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def new_bar() -> Bar:
    """A progress bar on stderr, with the rate and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(speed(rate) if rate else "")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
    )
    console = Console(stderr=True)
    return Progress(*columns, Rate(), TimeRemainingColumn(), console=console)
