"""A look through an ONNX protobuf that leaves weights where they lie.

A model file may hold two gigabytes of weights. The scan walks the wire format over the mapped file,
copies everything but the large data of initializers, and notes where that data is.

Wire format: https://protobuf.dev/programming-guides/encoding; field numbers: ``onnx.proto``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zenconvert.base.source_files import size_of, what_it_is
from zenconvert.errors import CorruptFile, SourceNotFound

MAX_FILE: Final = (1 << 31) - 1
"""Protobuf messages are smaller than 2 GiB."""
MAX_GRAPH: Final = 128 * 1024 * 1024
"""Bytes of a model without the raw data of its initializers."""
INLINE: Final = 1024
"""Data of at most this many bytes is copied with the graph."""

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _FLOAT_DATA, _RAW_DATA = 1, 4, 9
_REPEATED: Final = frozenset({_DIMS, 4, 5, 6, 7, 10, 11, 13, 16})  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Scan:
    """A model without the large data of its initializers."""

    message: bytes
    """A ModelProto."""
    data: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Number of an initializer → offset and bytes of its data in the file, where it has any."""


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire: int
    begin: int
    """Of the tag."""
    body: int
    """Of the value, after any length."""
    end: int


def scan(path: Path) -> Scan:
    """Walk through a model file. Raises CorruptFile and SourceNotFound."""
    size = size_of(path)
    if size > MAX_FILE:
        raise CorruptFile(f"{path}: {size} bytes; ONNX files are smaller than 2 GiB")
    if (other := what_it_is(path)) is not None:
        raise CorruptFile(f"{path}: it is {other}")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _model(view, path)
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error


def _model(view: mmap.mmap, path: Path) -> Scan:
    out, graphs = bytearray(), 0
    data: dict[int, tuple[int, int]] = {}
    for part in _fields(view, 0, len(view), path):
        if part.number != _GRAPH:
            _copy(out, view, part, path)
            continue
        graphs += 1
        if part.wire != _BYTES or graphs > 1:
            raise CorruptFile(f"{path}: byte {part.begin}: a model has one graph")
        graph, data = _graph(view, part, path)
        out += _tag(_GRAPH, _BYTES) + _varint(len(graph)) + graph
    if not graphs:
        raise CorruptFile(f"{path}: there is no graph in it; is it an ONNX file?")
    return Scan(bytes(out), data)


def _graph(
    view: mmap.mmap, graph: _Field, path: Path
) -> tuple[bytearray, dict[int, tuple[int, int]]]:
    out, data, number = bytearray(), {}, 0
    for part in _fields(view, graph.body, graph.end, path):
        if part.number != _INITIALIZER or part.wire != _BYTES:
            _copy(out, view, part, path)
            continue
        tensor, place = _initializer(view, part, path)
        out += _tag(_INITIALIZER, _BYTES) + _varint(len(tensor)) + tensor
        if place is not None:
            data[number] = place
        number += 1
    return out, data


def _initializer(
    view: mmap.mmap, tensor: _Field, path: Path
) -> tuple[bytearray, tuple[int, int] | None]:
    """A TensorProto without its large data, and the place of that."""
    out, place = bytearray(), None
    seen: set[int] = set()
    for part in _fields(view, tensor.body, tensor.end, path):
        if part.number in seen and part.number not in _REPEATED:
            raise CorruptFile(f"{path}: byte {part.begin}: field {part.number} of a tensor twice")
        seen.add(part.number)
        # packed float_data is little-endian floats, as raw_data is
        holds_data = part.number in {_RAW_DATA, _FLOAT_DATA} and part.wire == _BYTES
        if not holds_data or part.end - part.body <= INLINE:
            _copy(out, view, part, path)
        if holds_data:
            if place is not None:
                raise CorruptFile(f"{path}: byte {part.begin}: a tensor has its data twice")
            place = (part.body, part.end - part.body)
    return out, place


def _copy(out: bytearray, view: mmap.mmap, part: _Field, path: Path) -> None:
    """Add a field to a message, which is parsed as a whole later."""
    if len(out) + part.end - part.begin > MAX_GRAPH:
        raise CorruptFile(
            f"{path}: byte {part.begin}: the graph has more than {MAX_GRAPH} bytes beside the raw "
            "data of its initializers; export it with external data"
        )
    out += view[part.begin : part.end]


def _fields(view: mmap.mmap, at: int, end: int, path: Path) -> Iterator[_Field]:
    """The fields of the message in ``[at, end)``."""
    while at < end:
        begin = at
        key, at = _read_varint(view, at, end, path)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, stop = _read_varint(view, at, end, path)
        elif wire == _BYTES:
            length, at = _read_varint(view, at, end, path)
            stop = at + length
        elif wire in {_FIXED64, _FIXED32}:
            stop = at + (8 if wire == _FIXED64 else 4)
        else:
            raise CorruptFile(f"{path}: byte {begin}: wire type {wire} is none; not an ONNX file?")
        if stop > end or not number:
            raise CorruptFile(f"{path}: byte {begin}: field {number} does not end in its message")
        yield _Field(number, wire, begin, at, stop)
        at = stop


def _read_varint(view: mmap.mmap, at: int, end: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = view[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise CorruptFile(f"{path}: byte {at}: a number that does not end; not an ONNX file?")


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
