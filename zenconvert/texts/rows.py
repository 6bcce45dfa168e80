"""Rows of JSON lines, JSON arrays and tables with a head, read one at a time.

A file of gigabytes, or one line without an end, costs no more memory than its longest row may have.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from zenconvert.base.json_text import json_value
from zenconvert.base.source_files import broken, reading, size_of
from zenconvert.errors import CorruptFile

Row = tuple[int, Any]
"""Its number in the file, from 1 on, and its value."""

_MOST_TEXT: Final = 256 * 1024 * 1024
"""Bytes of a file."""
_MOST_DOCUMENT: Final = 64 * 1024 * 1024
"""Bytes of a file that is one document."""
MOST_ROW: Final = 8 * 1024 * 1024
"""Characters of a row: the longest novels have half as many."""
_MOST_COLUMNS: Final = 4096
_CHUNK: Final = 1 << 20
_SPACE: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder()


def read_document(path: Path, limit: int = _MOST_DOCUMENT) -> str:
    """A whole UTF-8 file, without a mark of byte order. Raises CorruptFile, SourceNotFound."""
    with _opened(path, limit, newline="") as file:
        return file.read()


@contextmanager
def _opened(path: Path, limit: int, newline: str | None = None) -> Iterator[TextIO]:
    size = size_of(path)
    if size > limit:
        raise CorruptFile(f"{path}: it has {size} bytes; files of its kind have at most {limit}")
    with reading(path), path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _lines(path: Path, newline: str = "\n") -> Iterator[str]:
    """Lines with their ends; ``newline`` as for :func:`open`."""
    with _opened(path, _MOST_TEXT, newline) as file:
        number = 1
        while line := file.readline(MOST_ROW + 1):
            if len(line) > MOST_ROW:
                raise _too_long(path, number)
            yield line
            number += 1


def _too_long(path: Path, number: int) -> CorruptFile:
    """The error for a row that is longer than any document."""
    return CorruptFile(
        f"{path.name}:{number}: a row of more than {MOST_ROW} characters; cut the text into "
        "several rows"
    )


def _not_utf8(path: Path) -> CorruptFile:
    """The error for a file with bytes that are no UTF-8: where the first of them stands."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                where = at - kept + error.start
                return broken(path, f"not UTF-8 at byte {where}; convert the file")
            if not chunk:
                return broken(path, "not UTF-8; convert the file")
            at += len(chunk)


def table_rows(path: Path, delimiter: str, facts: frozenset[str]) -> Iterator[Row]:
    """The rows of a table with more than ``facts``; cells without text are left out.

    Raises CorruptFile.
    """
    length = 0

    def bounded() -> Iterator[str]:
        nonlocal length
        for number, line in enumerate(_lines(path, newline=""), 1):
            length += len(line)  # of a row, which may have several lines
            if length > MOST_ROW:
                raise _too_long(path, number)
            yield line

    reader = csv.DictReader(bounded(), delimiter=delimiter)
    try:
        names = reader.fieldnames or ()
        if not {"text", "instruction", "prompt", "question", "query"} & set(names):
            raise CorruptFile(
                f"{path}: expected a column 'text' (or 'instruction', 'prompt'), found "
                f"{list(names)[:8]!r:.300}"
            )
        if len(names) > _MOST_COLUMNS:
            raise CorruptFile(f"{path}: {len(names)} columns; at most {_MOST_COLUMNS} are read")
        for number, row in enumerate(reader, 1):
            length = 0
            found = {k: v for k, v in row.items() if isinstance(v, str) and v.strip()}
            if found.keys() - facts:
                yield number, found
    except csv.Error as error:
        raise CorruptFile(f"{path}:{reader.line_num}: the table cannot be read: {error}") from error


def line_rows(path: Path) -> Iterator[Row]:
    """The values of JSON lines. Raises CorruptFile."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                value = json_value(line)
            except (ValueError, RecursionError) as error:
                where = f"{path.name}:{number}"
                raise CorruptFile(f"{where}: the line is not JSON: {error}") from error
            yield number, value


def array_rows(path: Path) -> Iterator[Row]:
    """The members of a JSON array, or one row; JSON lines are sometimes called ``.json``, too.

    Raises CorruptFile for what is none of these.
    """
    if _first_sign(path) == "[":
        with _opened(path, _MOST_TEXT) as file:
            yield from enumerate(_Array(path, file).members(), 1)
        return
    found = _lines(path)
    first = next((line for line in found if line.strip()), "")
    if first.rstrip().endswith("}") and any(line.strip() for line in found):
        yield from line_rows(path)
        return
    try:
        yield 1, json_value(read_document(path, MOST_ROW))
    except (ValueError, RecursionError) as error:
        raise _neither(path, error) from error


def _first_sign(path: Path) -> str:
    with _opened(path, _MOST_TEXT) as file:
        while block := file.read(_CHUNK):
            if text := block.lstrip(_SPACE):
                return text[0]
    return ""


def _neither(path: Path, error: object) -> CorruptFile:
    return CorruptFile(f"{path}: neither a JSON array nor JSON lines: {error}")


class _Array:
    """Reads an array through a window that is hardly longer than a row may be."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.ended = "", 0, False

    def members(self) -> Iterator[Any]:
        """The members, one by one. Raises CorruptFile."""
        self._take("[")
        number = 0
        while number or self._sign() != "]":
            number += 1
            yield self._member(number)
            if self._sign() != ",":
                break
            self._take(",")
            self._sign()
        self._take("]")
        if self._sign():
            raise _neither(self.path, "there is more behind the array")

    def _member(self, number: int) -> Any:
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if self.ended or isinstance(error, RecursionError):
                    raise _neither(self.path, error) from error
                self._fill()
                if len(self.text) > MOST_ROW:
                    raise _too_long(self.path, number) from error
            else:
                return value

    def _sign(self) -> str:
        """The sign that comes next, after spaces; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._fill()

    def _take(self, sign: str) -> None:
        if (found := self._sign()) != sign:
            raise _neither(self.path, f"expected {sign!r}, found {found!r}")
        self.at += 1

    def _fill(self) -> None:
        """Read on, three times as much as there is: a long row is tried a few times only."""
        left = self.text[self.at :]
        more = self.file.read(max(_CHUNK, 3 * len(left)))
        self.text, self.at, self.ended = left + more, 0, not more
