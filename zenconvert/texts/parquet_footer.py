"""How much the columns of a Parquet file unfold to, read from its footer and its pages.

pyarrow has the same numbers, but where a footer contradicts itself its accessors end the process:
they let exceptions of C++ pass. Source: ``parquet.thrift`` of apache/parquet-format and Thrift's
compact protocol. What a footer says of a column may be far less than what the headers of its pages
do, and these are what is unfolded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from zenconvert.errors import CorruptFile

_MAGIC: Final = b"PAR1"
_END: Final = 8
"""Bytes after the footer: its length and the magic."""
_LARGEST: Final = 64 * 1024 * 1024
_DEEPEST: Final = 32
# kinds of the compact protocol
_TRUE, _FALSE, _BYTE, _I64 = 1, 2, 3, 6
_DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 7, 8, 9, 10, 11, 12
# numbers of fields: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData
_ROW_GROUPS: Final = 4
_COLUMNS: Final = 1
_META_DATA: Final = 3
_ENCODINGS: Final = 2
_DELTA_BYTE_ARRAY: Final = 7
_PATH_IN_SCHEMA: Final = 3
_VALUES: Final = 5
_UNCOMPRESSED: Final = 6
_COMPRESSED: Final = 7
_DATA_PAGES: Final = 9
_DICTIONARY_PAGE: Final = 11
# of PageHeader, and of the headers of data in it
_PAGE_UNCOMPRESSED: Final = 2
_PAGE_COMPRESSED: Final = 3
_HEADERS: Final = (5, 8)
_PAGE_VALUES: Final = 1
_HEAD: Final = (512, 1 << 20)
"""Bytes of a page's header: most, and those with long statistics."""
_MOST_PAGES: Final = 1 << 16
"""Of a column in a row group; writers make one of every megabyte or twenty thousand rows."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column in one row group, as the footer has it."""

    group: int
    name: str
    """Dotted."""
    values: int
    unfolded: int
    """Bytes."""
    begin: int
    """Where its pages begin in the file."""
    end: int
    shares_beginnings: bool = False
    """Whether texts are stored as what follows the beginning of the one before."""


def columns(path: Path) -> Iterator[Column]:
    """Every column of every row group. Raises CorruptFile."""
    footer = _footer(path)
    try:
        table = _Compact(footer).struct(0)
        for number, group in enumerate(table.get(_ROW_GROUPS, ())):
            for chunk in group.get(_COLUMNS, ()):
                yield _column(number, chunk.get(_META_DATA, {}))
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{path}: the footer of this Parquet file is malformed") from error


def _column(group: int, facts: dict[int, Any]) -> Column:
    parts = facts.get(_PATH_IN_SCHEMA, ())
    first = [int(facts[key]) for key in (_DATA_PAGES, _DICTIONARY_PAGE) if facts.get(key)]
    begin = min(first, default=0)
    return Column(
        group,
        ".".join(part.decode("utf-8", "replace") for part in parts),
        int(facts.get(_VALUES, 0)),
        int(facts.get(_UNCOMPRESSED, 0)),
        begin,
        begin + int(facts.get(_COMPRESSED, 0)),
        _DELTA_BYTE_ARRAY in facts.get(_ENCODINGS, ()),
    )


def unfolded(path: Path, column: Column) -> tuple[int, int]:
    """Bytes and values that a column's pages unfold to, by their headers. Raises CorruptFile."""
    at, size, values, pages = column.begin, 0, 0, 0
    with path.open("rb") as file:
        while 0 < at < column.end:
            head, length = _page_header(path, file, at)
            inner = [head[key] for key in _HEADERS if isinstance(head.get(key), dict)]
            told = [head.get(_PAGE_COMPRESSED), head.get(_PAGE_UNCOMPRESSED)]
            told += [one.get(_PAGE_VALUES, 0) for one in inner]
            numbers = [number for number in told if isinstance(number, int) and number >= 0]
            if len(numbers) < len(told):
                raise CorruptFile(f"{path}: byte {at}: a page of {column.name} has no size")
            packed, whole, *counts = numbers
            values += sum(counts)
            at, size, pages = at + length + packed, size + whole, pages + 1
            if pages > _MOST_PAGES:
                raise CorruptFile(f"{path}: {column.name} has more than {_MOST_PAGES} pages")
    return size, values


def _page_header(path: Path, file: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a page's header, and its bytes."""
    for most in _HEAD:
        file.seek(at)
        reader = _Compact(file.read(most))
        try:
            return reader.struct(0), reader.at
        except (IndexError, ValueError, TypeError):
            continue
    raise CorruptFile(f"{path}: byte {at}: the header of this page is malformed")


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END))
        end = file.read(_END)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != _MAGIC or not 0 < length <= min(_LARGEST, size - _END):
            raise CorruptFile(
                f"{path}: expected a Parquet file, which ends with the length of its footer, at "
                f"most {_LARGEST}, and {_MAGIC.decode()}, found {end!r}"
            )
        file.seek(size - _END - length)
        return file.read(length)


class _Compact:
    """Values of Thrift's compact protocol, structs as field number → value."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """The fields up to the stop. Raises IndexError or ValueError."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._signed()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        return self._element(kind, depth)

    def _element(self, kind: int, depth: int) -> Any:
        """What has a byte of its own also where it is a truth value."""
        if kind <= _BYTE:
            return self._byte()
        if kind <= _I64:
            return self._signed()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._unsigned())
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind == _MAP:
            return self._map(depth + 1)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"kind {kind} is unknown")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        if count > len(self.data) - self.at:
            raise ValueError("more members than bytes")
        return [self._element(head & 15, depth) for _ in range(count)]

    def _map(self, depth: int) -> list[Any]:
        count = self._unsigned()
        if count > len(self.data) - self.at:
            raise ValueError("more members than bytes")
        kinds = self._byte() if count else 0
        return [
            (self._element(kinds >> 4, depth), self._element(kinds & 15, depth))
            for _ in range(count)
        ]

    def _byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def _take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise IndexError(self.at)
        return self.data[begin : self.at]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
