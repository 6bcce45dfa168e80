"""Which line of a TOML text a key or table stands on; ``tomllib`` says so for syntax errors only.

The text has been parsed before, so that it is known to be TOML: what is left is to follow strings,
brackets and comments well enough to see where statements begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final

Place = tuple[str | int, ...]
"""Keys from the top; a number counts the tables of an array, e.g. ``("variant", 0, "target")``."""

_PART: Final = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*(\.?)""")
_TOKEN: Final = re.compile(
    r'"""|' + r"'''|" + r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[\[\]{}]"""
)  # fmt: skip
_REST: Final = {
    '"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*+"""', re.DOTALL),
    "'''": re.compile(r"(?:[^']|'(?!''))*+'''"),
}
"""What follows the opening quotes of a string of several lines."""


class Lines:
    """The lines of a text's keys and tables."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {}
        table: Place = ()
        tables: dict[Place, int] = {}
        for number, statement in _statements(text):
            if statement.startswith("[["):
                name = _resolved(_names(statement[2:]), tables)
                tables[name] = tables.get(name, -1) + 1
                table = (*name, tables[name])
                self._lines.setdefault(name, number)
                self._lines[table] = number
            elif statement.startswith("["):
                table = _resolved(_names(statement[1:]), tables)
                self._lines.setdefault(table, number)
            else:
                self._lines.setdefault((*table, *_names(statement)), number)

    def of(self, place: Place) -> int:
        """The line of a place, or of the nearest thing that holds it; 1 for the whole text."""
        for length in range(len(place), 0, -1):
            if (line := self._lines.get(place[:length])) is not None:
                return line
        return 1


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, what stands there) of every table header and every key."""
    ends = [0, *(match.end() for match in re.finditer("\n", text)), len(text) + 1]
    resume = 0
    for number, (begin, end) in enumerate(pairwise(ends), 1):
        statement = text[begin:end].strip()
        if begin < resume or not statement or statement.startswith("#"):
            continue
        if not statement.startswith("["):
            resume = _value_end(text, text.index("=", begin + _key_length(text[begin:end])))
        yield number, statement


def _key_length(line: str) -> int:
    """Characters of a dotted key at the beginning of a line, which may be quoted."""
    at = 0
    while (match := _PART.match(line, at)) is not None:
        at = match.end()
        if not match[2]:
            break
    return at


def _value_end(text: str, begin: int) -> int:
    """Where the value behind an equals sign ends: its line's end, outside strings and brackets."""
    depth, at = 0, begin
    while at < len(text):
        newline = text.find("\n", at)
        newline = len(text) if newline < 0 else newline
        match = _TOKEN.search(text, at, newline)  # to the end of all would be quadratic
        if match is None:
            if depth == 0:
                return newline
            at = newline + 1
            continue
        token = match[0]
        depth += (token in "[{") - (token in "]}")
        at = _string_end(text, match.end(), token) if token in {'"""', "'''"} else match.end()
    return at


def _string_end(text: str, begin: int, quotes: str) -> int:
    """Where a string of several lines ends."""
    match = _REST[quotes].match(text, begin)
    return len(text) if match is None else match.end()


def _names(statement: str) -> tuple[str, ...]:
    """The parts of a dotted key at the beginning of a statement."""
    names, at = [], 0
    while (match := _PART.match(statement, at)) is not None:
        name = match[1]
        names.append(name[1:-1] if name[0] in "\"'" else name)
        at = match.end()
        if not match[2]:
            break
    return tuple(names)


def _resolved(names: tuple[str, ...], tables: Mapping[Place, int]) -> Place:
    """A table's name, with the number of the array entry that it lies in."""
    place: Place = ()
    for name in names[:-1]:
        place = (*place, name)
        if place in tables:
            place = (*place, tables[place])
    return (*place, *names[-1:])
