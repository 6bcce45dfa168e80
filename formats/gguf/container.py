"""The GGUF container: bytes ↔ key/values and tensor infos. Little-endian, version 2 and 3.

::

    "GGUF"  u32 version  u64 tensors  u64 key/values
    key/value:  str key, u32 type, value          str: u64 length + UTF-8
                type 9: u32 element type, u64 count, elements
    tensor:     str name, u32 n_dims, u64 dims (fastest first), u32 ggml type, u64 offset
    zero padding to general.alignment (32), then tensor data, each tensor padded to the alignment

Source: ggml/docs/gguf.md and gguf.cpp of llama.cpp. Every count and length is checked against the
bytes that are left in the file before anything is allocated. Traps: offsets are relative to the
data section; ids of removed types; llama.cpp refuses nested arrays, and so does this reader.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from zenconvert.base.source_files import broken, size_of
from zenconvert.errors import CorruptFile, PlanError, SourceNotFound
from zenconvert.ggml.types import BY_ID, REMOVED_IDS, GgmlType

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMENSIONS: Final = 4
_MAX_NAME: Final = 64 * 1024
_MAX_TEXT: Final = 32 * 1024 * 1024
_MAX_ARRAY: Final = 64 * 1024 * 1024
"""Bytes of one array; the texts of all tokens of the largest vocabularies take a tenth."""
_MAX_ARRAYS: Final = 128 * 1024 * 1024
"""Bytes of all arrays."""
_MAX_STRINGS: Final = 4_000_000
_MAX_ELEMENTS: Final = 1 << 50

SCALARS: Final[dict[int, tuple[str, struct.Struct]]] = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
STRING: Final = 8
ARRAY: Final = 9
TYPE_IDS: Final = {name: (type_id, s) for type_id, (name, s) in SCALARS.items()}
ARRAY_DTYPES: Final = {
    "u8": "<u1", "i8": "<i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4",
    "f32": "<f4", "bool": "?", "u64": "<u8", "i64": "<i8", "f64": "<f8",
}  # fmt: skip

KeyValue = tuple[str, Any]
"""``("u32", 7)``, ``("str", "text")``, ``("arr:i32", ndarray)``, ``("arr:str", list[str])`` …"""

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. ``type`` is None for an id that this version does not know."""

    name: str
    shape: tuple[int, ...]
    """Slowest dimension first: ``[out, in]``."""
    type_id: int
    type: GgmlType | None
    path: Path
    offset: int
    """From the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of one file."""

    path: Path
    metadata: dict[str, KeyValue]
    tensors: dict[str, TensorInfo]


_TURNED: Final = "; the file seems to be big-endian: gguf-convert-endian of gguf-py turns it round"
_OLD: Final = "; it is of August 2023, nor does llama.cpp read it: convert the model anew"
_HINTS: Final = {1: _OLD, 2 << 24: _TURNED, 3 << 24: _TURNED}


class _Cursor:
    """Bounded reads over the file; every failure names the offset."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)
        self.arrays = 0
        """Bytes of the arrays until now."""

    def fail(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what} (at byte {self.at} of {self.size})")

    def need(self, count: int, what: str) -> int:
        """Claim ``count`` bytes and return where they begin."""
        if count > self.size - self.at:
            left = self.size - self.at
            raise self.fail(
                f"{what} needs {count} bytes and {left} are left; the file is truncated or damaged"
            )
        begin, self.at = self.at, self.at + count
        return begin

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.data, self.need(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.data, self.need(8, what))[0]
        return value

    def text(self, what: str, limit: int) -> str:
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.fail(f"{what} claims {length} bytes; at most {limit} are allowed")
        begin = self.need(length, what)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8: {error.reason}") from error


def read(path: Path) -> GgufFile:
    """Read the header of one GGUF file; no tensor data is touched.

    Raises SourceNotFound when the file cannot be opened, CorruptFile when it breaks a rule, and
    InvalidInput for what is no plain file.
    """
    size = size_of(path)
    try:
        with path.open("rb") as file:
            if (head := file.read(4)) != MAGIC:
                found = f"expected it to begin with {MAGIC!r}, found {head!r} (at byte 0 of {size})"
                raise broken(path, f"no GGUF file: {found}")
            if size < 24:
                raise CorruptFile(f"{path}: {size} bytes are too few for a GGUF header (24)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data))
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error


def _parse(cursor: _Cursor) -> GgufFile:
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        hint = _HINTS.get(version, "")
        raise cursor.fail(f"GGUF version {version} is not supported (2 and 3 are){hint}")
    tensor_count = cursor.u64("the tensor count")
    kv_count = cursor.u64("the key/value count")
    # smallest key/value: 8 + 1 + 4 + 1 bytes; smallest tensor info: 8 + 1 + 4 + 8 + 4 + 8
    for count, least, what in ((kv_count, 14, "key/values"), (tensor_count, 33, "tensors")):
        if count * least > cursor.size - cursor.at:
            raise cursor.fail(f"{count} {what} cannot fit into the file")
    metadata = _parse_metadata(cursor, kv_count)
    alignment = _alignment(cursor, metadata)
    infos = [_parse_tensor(cursor) for _ in range(tensor_count)]
    return GgufFile(cursor.path, metadata, _place(cursor, infos, alignment))


def _parse_metadata(cursor: _Cursor, count: int) -> dict[str, KeyValue]:
    metadata: dict[str, KeyValue] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", _MAX_NAME)
        if not key:
            raise cursor.fail("a metadata key is empty; the key/value count or the data is wrong")
        if key in metadata:
            raise cursor.fail(f"the metadata key {key!r} appears twice")
        metadata[key] = _parse_value(cursor, key, cursor.u32(f"the type of {key!r}"))
    return metadata


def _parse_value(cursor: _Cursor, key: str, type_id: int) -> KeyValue:
    if type_id == STRING:
        return "str", cursor.text(f"the value of {key!r}", _MAX_TEXT)
    if type_id == ARRAY:
        begin, array = cursor.at, _parse_array(cursor, key)
        cursor.arrays += cursor.at - begin
        if cursor.arrays > _MAX_ARRAYS:
            raise cursor.fail(f"the arrays of the metadata take more than {_MAX_ARRAYS} bytes")
        return array
    if type_id not in SCALARS:
        raise cursor.fail(f"the value of {key!r} has the unknown type {type_id}")
    name, scalar = SCALARS[type_id]
    value = scalar.unpack_from(cursor.data, cursor.need(scalar.size, f"the value of {key!r}"))[0]
    if name == "bool":
        if value > 1:
            raise cursor.fail(f"the value of {key!r} should be a bool (0 or 1), found {value}")
        return name, bool(value)
    return name, value


def _parse_array(cursor: _Cursor, key: str) -> KeyValue:
    what = f"the array {key!r}"
    element = cursor.u32(f"the element type of {what}")
    count = cursor.u64(f"the length of {what}")
    if element == STRING:
        return "arr:str", _parse_strings(cursor, what, count)
    if element not in SCALARS:
        kind = "nested arrays" if element == ARRAY else f"elements of the unknown type {element}"
        raise cursor.fail(f"{what} has {kind}, which GGUF readers do not support")
    name, scalar = SCALARS[element]
    if count * scalar.size > _MAX_ARRAY:
        raise cursor.fail(f"{what} claims {count} elements; at most {_MAX_ARRAY} bytes are read")
    begin = cursor.need(count * scalar.size, what)
    # a copy, so that nothing refers to the mapping after it is closed
    values = np.frombuffer(cursor.data[begin : cursor.at], dtype=ARRAY_DTYPES[name])
    return f"arr:{name}", values


def _parse_strings(cursor: _Cursor, what: str, count: int) -> list[str]:
    if count * 8 > cursor.size - cursor.at or count > _MAX_STRINGS:
        raise cursor.fail(
            f"{what} claims {count} strings, more than the file can hold or {_MAX_STRINGS}"
        )
    data, at, size, unpack = cursor.data, cursor.at, cursor.size, _U64.unpack_from
    size = min(size, at + _MAX_ARRAY)
    strings: list[str] = []
    append = strings.append
    try:
        for _ in range(count):
            (length,) = unpack(data, at)
            begin = at + 8
            at = begin + length
            if at > size:
                cursor.at = begin
                raise cursor.fail(f"string {len(strings)} of {what} claims {length} bytes")
            append(data[begin:at].decode("utf-8"))
    except struct.error:
        cursor.at = at
        raise cursor.fail(f"string {len(strings)} of {what} lies beyond the end of file") from None
    except UnicodeDecodeError as error:
        cursor.at = at
        raise cursor.fail(
            f"string {len(strings)} of {what} is not UTF-8: {error.reason}"
        ) from error
    cursor.at = at
    return strings


def _alignment(cursor: _Cursor, metadata: dict[str, KeyValue]) -> int:
    kind, value = metadata.get("general.alignment", ("u32", DEFAULT_ALIGNMENT))
    if kind != "u32" or value <= 0 or value & (value - 1) or value > 1 << 20:
        raise cursor.fail(
            f"general.alignment should be a u32 power of two of at most 1 MiB, found {kind} {value}"
        )
    return int(value)


def _parse_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor name", _MAX_NAME)
    n_dims = cursor.u32(f"the dimension count of {name!r}")
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise cursor.fail(
            f"tensor {name!r} claims {n_dims} dimensions; 1 to {MAX_DIMENSIONS} exist"
        )
    dims = struct.unpack_from(f"<{n_dims}Q", cursor.data, cursor.need(8 * n_dims, f"{name!r}"))
    elements = prod(dims)
    if not 0 < elements < _MAX_ELEMENTS:
        raise cursor.fail(f"tensor {name!r} has the impossible shape {dims[::-1]}")
    type_id = cursor.u32(f"the type of {name!r}")
    if type_id in REMOVED_IDS:
        raise cursor.fail(
            f"tensor {name!r} has type {type_id}, which was removed from GGUF; requantize the model"
        )
    ggml_type = BY_ID.get(type_id)
    if ggml_type is not None and dims[0] % ggml_type.block_size:
        raise cursor.fail(
            f"tensor {name!r}: rows of {dims[0]} are not a multiple of {ggml_type.name}'s "
            f"{ggml_type.block_size}"
        )
    return name, dims[::-1], type_id, cursor.u64(f"the offset of {name!r}")


def _place(
    cursor: _Cursor, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int
) -> dict[str, TensorInfo]:
    """Check extents and turn offsets into file positions."""
    if not infos:
        return {}
    start = -(-cursor.at // alignment) * alignment
    room = cursor.size - start
    offsets = sorted(offset for *_, offset in infos)
    following = dict(zip(offsets, [*offsets[1:], room], strict=True))
    tensors: dict[str, TensorInfo] = {}
    if len(following) < len(offsets):
        raise cursor.fail("two tensors begin at the same offset")
    for name, shape, type_id, offset in infos:
        ggml_type = BY_ID.get(type_id)
        if name in tensors:
            raise cursor.fail(f"the tensor {name!r} appears twice")
        if offset % alignment:
            raise cursor.fail(f"tensor {name!r}: offset {offset} is no multiple of {alignment}")
        space = following[offset] - offset
        size = space
        if ggml_type is not None:
            size = prod(shape[:-1]) * ggml_type.row_bytes(shape[-1])
        if size > room - offset:
            raise cursor.fail(
                f"tensor {name!r} ends at byte {start + offset + size} and the file has "
                f"{cursor.size}; it is truncated"
            )
        if size > space or space < 0:
            raise cursor.fail(f"tensor {name!r} at offset {offset} overlaps the one that follows")
        tensors[name] = TensorInfo(
            name, shape, type_id, ggml_type, cursor.path, start + offset, size
        )
    return tensors


def is_key_value(key: str, kind: str, value: Any) -> bool:
    """Whether a key/value can be packed: the value is one of its type."""
    if not 0 < len(key.encode("utf-8")) <= _MAX_NAME:
        return False
    element = kind.removeprefix("arr:")
    if element == kind:
        return _is_scalar(kind, value)
    return isinstance(value, list) and all(_is_scalar(element, item) for item in value)


def _is_scalar(kind: str, value: Any) -> bool:
    if kind == "str" or kind == "bool":
        return isinstance(value, str if kind == "str" else bool)
    if kind not in TYPE_IDS or isinstance(value, bool):
        return False
    try:
        TYPE_IDS[kind][1].pack(value)
    except (struct.error, OverflowError):
        return False
    return True


def pack_metadata(metadata: dict[str, KeyValue]) -> bytes:
    """Serialise key/values in the order given. Raises PlanError for what a type cannot hold."""
    return b"".join(
        _pack_text(key) + _pack_key_value(key, kind, value)
        for key, (kind, value) in metadata.items()
    )


def _pack_key_value(key: str, kind: str, value: Any) -> bytes:
    try:
        return _pack_value(kind, value)
    except (struct.error, OverflowError) as error:
        found = f"{value!r:.100} is beyond the numbers of the type {kind}"
        raise PlanError([f"{key} cannot be written in a GGUF file: {found}"]) from error


def pack_header(
    metadata: dict[str, KeyValue], tensors: list[tuple[str, tuple[int, ...], int, int]]
) -> bytes:
    """The bytes before the data section, padded to the alignment.

    ``tensors`` are ``(name, shape slowest first, ggml type id, offset in the data section)``.
    """
    alignment = int(metadata.get("general.alignment", ("u32", DEFAULT_ALIGNMENT))[1])
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata)), pack_metadata(metadata)]
    for name, shape, type_id, offset in tensors:
        parts.append(_pack_text(name))
        parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        parts.append(struct.pack("<IQ", type_id, offset))
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)


def _pack_text(text: str) -> bytes:
    data = text.encode("utf-8")
    return _U64.pack(len(data)) + data


def _pack_value(kind: str, value: Any) -> bytes:
    if kind == "str":
        return _U32.pack(STRING) + _pack_text(value)
    if kind == "arr:str":
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(map(_pack_text, value))
    if kind.startswith("arr:"):
        element = kind.removeprefix("arr:")
        array = np.asarray(value, dtype=ARRAY_DTYPES[element])
        return struct.pack("<IIQ", ARRAY, TYPE_IDS[element][0], array.size) + array.tobytes()
    type_id, scalar = TYPE_IDS[kind]
    return _U32.pack(type_id) + scalar.pack(value)
