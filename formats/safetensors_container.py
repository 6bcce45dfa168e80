"""The safetensors container: header bytes ↔ tensor infos.

::

    u64 header length, JSON header, tensor data
    header: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}

Source: the safetensors README. Offsets are relative to the data section, which the tensors cover
without holes or overlaps. A header may be padded with spaces; ours is padded to 8 bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from math import prod
from pathlib import Path
from typing import Any, Final

from zenconvert.base.json_text import check_shape
from zenconvert.base.records import record
from zenconvert.base.source_files import broken, size_of
from zenconvert.errors import CorruptFile, SourceNotFound, UnsupportedEncoding
from zenconvert.model.encoding import DENSE_DTYPES, Dense

MAX_HEADER: Final = 100_000_000
"""The limit of the reference implementation."""

_DTYPES: Final = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8_e4m3",
    "F8_E5M2": "f8_e5m2",
    "F8_E8M0": "f8_e8m0",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
}
_SIZES: Final = {theirs: DENSE_DTYPES[ours].itemsize for theirs, ours in _DTYPES.items()}
"""Bytes of an element."""
_NAMES: Final = {ours: theirs for theirs, ours in _DTYPES.items()}
_KEYS: Final = {"dtype", "shape", "data_offsets"}
_MAX_DIMENSIONS: Final = 16
_MAX_SIZE: Final = 1 << 56


@record
class Entry:
    """One tensor of a file."""

    name: str
    dtype: str
    """Our dtype name (``bf16``)."""
    shape: tuple[int, ...]
    path: Path
    offset: int
    """From the start of the file."""
    nbytes: int
    stride: int | None = None
    """Bytes from line to line, where rows of ours are columns of the file."""
    turn: tuple[int, int] = (0, 1)
    """Which of how many columns of the file in turn are rows of ours."""


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """The header of one file; ``tensors`` in the order of their data."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Entry]


def read(path: Path) -> SafetensorsFile:
    """Read one header. Raises SourceNotFound, InvalidInput, CorruptFile or UnsupportedEncoding."""
    size = size_of(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > size - 8:
                raise broken(
                    path,
                    f"the header should take {length} bytes and the file has {size}; it is "
                    "truncated or no safetensors file",
                )
            if length > MAX_HEADER:
                raise broken(path, f"a header of {length} bytes exceeds {MAX_HEADER}")
            header = _parse_json(path, file.read(length))
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptFile(f"{path}: __metadata__ should map strings to strings")
    entries = [_entry(path, name, row, 8 + length, size) for name, row in header.items()]
    entries.sort(key=lambda e: (e.offset, e.nbytes))
    _check_cover(path, entries, 8 + length, size)
    return SafetensorsFile(path, metadata, {e.name: e for e in entries})


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = [name for name, count in counts.items() if count > 1]
            raise CorruptFile(
                f"{path}: the header has {len(twice)} of {len(table)} names twice, the first: "
                f"{', '.join(map(repr, sorted(twice)[:3]))}"
            )
        return table

    try:
        check_shape(data)
        header = json.loads(data.decode("utf-8"), object_pairs_hook=no_duplicates)
    except UnicodeDecodeError as error:
        raise broken(path, f"the header is not UTF-8: {error.reason}") from error
    except ValueError as error:  # no JSON, or a number of more digits than Python reads
        raise broken(path, f"the header is no valid JSON: {error}") from error
    except RecursionError as error:
        raise CorruptFile(f"{path}: the header is nested too deeply") from error
    if not isinstance(header, dict):
        raise CorruptFile(f"{path}: the header should be a JSON object")
    return header


def _are_counts(values: object, most: int) -> bool:
    """Whether it is a list of that many numbers at most that can be sizes or offsets."""
    if type(values) is not list or len(values) > most:
        return False
    for value in values:  # noqa: SIM110  (a model has hundreds of thousands of these)
        if type(value) is not int or not 0 <= value < _MAX_SIZE:
            return False
    return True


def _entry(path: Path, name: str, row: Any, start: int, size: int) -> Entry:
    if not isinstance(row, dict) or row.keys() != _KEYS:
        raise _corrupt(path, name, f"expected dtype, shape and data_offsets, found {row!r:.200}")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UnsupportedEncoding(f"{path}: tensor {name!r}: dtype {dtype!r} is not known")
    if not _are_counts(shape, _MAX_DIMENSIONS):
        raise _corrupt(path, name, f"shape {shape!r:.200} is no list of sizes")
    if not _are_counts(offsets, 2) or len(offsets) != 2:
        raise _corrupt(path, name, f"data_offsets {offsets!r:.200} is no pair of offsets")
    begin, end = offsets
    expected = prod(shape) * _SIZES[dtype]
    if end - begin != expected:
        span = f"takes {expected} bytes, the offsets span {end - begin}"
        raise _corrupt(path, name, f"shape {shape} of {dtype} {span}")
    if start + end > size:
        lack = f"ends at byte {start + end} and the file has {size}; it is truncated"
        raise _corrupt(path, name, lack)
    return Entry(name, _DTYPES[dtype], tuple(shape), path, start + begin, expected)


def _corrupt(path: Path, name: str, what: str) -> CorruptFile:
    return CorruptFile(f"{path}: tensor {name!r}: {what}")


def _check_cover(path: Path, entries: Sequence[Entry], start: int, size: int) -> None:
    at = start
    for entry in entries:
        if entry.offset != at:
            kind = (
                "overlaps the tensor before it" if entry.offset < at else "leaves a hole before it"
            )
            raise CorruptFile(
                f"{path}: tensor {entry.name!r} {kind} (byte {entry.offset}, not {at})"
            )
        at += entry.nbytes
    if at != size:
        raise CorruptFile(f"{path}: {size - at} bytes after the last tensor belong to no tensor")


Kind = tuple[str, Dense, tuple[int, ...]]
"""What the name of an array ends with, its dtype and its shape."""


def pack_header(tensors: Iterable[Kind], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """Header bytes for ``(name, encoding, shape)`` in data order, and each tensor's file offset."""
    return pack_groups([("", tuple(tensors))], metadata)


def pack_groups(
    groups: Iterable[tuple[str, tuple[Kind, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """The same for arrays whose names begin with that of a group; groups of one kind are told
    apart fastest where their arrays are one tuple."""
    # put together by hand, as a model of experts has hundreds of thousands of arrays
    told: dict[int, tuple[tuple[Kind, ...], list[tuple[str, int]]]] = {}
    rows = [f'"__metadata__":{_json(dict(metadata))}']
    at, begins = 0, []
    for name, arrays in groups:
        known = told.get(id(arrays))
        if known is None:
            known = told[id(arrays)] = arrays, [_told(*one) for one in arrays]
        begin = encode_basestring(name)[:-1]
        for kind, size in known[1]:
            end = at + size
            rows.append(f'{begin}{kind}"data_offsets":[{at},{end}]}}')
            begins.append(at)
            at = end
    text = f"{{{','.join(rows)}}}".encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text
    return data, [len(data) + begin for begin in begins]


def _told(end: str, encoding: Dense, shape: tuple[int, ...]) -> tuple[str, int]:
    """What a header says of an array after the beginning of its name, and its bytes."""
    table = _json({"dtype": _NAMES[encoding.dtype], "shape": list(shape)}).removesuffix("}")
    return f"{encode_basestring(end)[1:]}:{table},", prod(shape) * encoding.numpy.itemsize


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
