"""An ONNX model file: nodes, and where the data of every initializer lies.

Data stands in the file itself or in external files beside it. External data is the word of whoever
made the file, and is checked as onnx ≥ 1.21 checks it: plain files inside the model's own folder,
no links except those of the Hub cache, extents within the file that do not overlap.

Sources: ``onnx.proto``, ``onnx/docs/ExternalData.md``, ``onnx/checker.cc``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from zenconvert.base.source_files import what_it_is
from zenconvert.errors import CorruptFile, SourceNotFound, UnsafePath, Unsupported
from zenconvert.formats.onnx.read.protobuf_scan import Scan, scan

if TYPE_CHECKING:
    import onnx

TYPES: Final = {
    1: ("f32", 32),
    2: ("u8", 8),
    3: ("i8", 8),
    5: ("i16", 16),
    6: ("i32", 32),
    7: ("i64", 64),
    9: ("bool", 8),
    10: ("f16", 16),
    11: ("f64", 64),
    16: ("bf16", 16),
    17: ("f8_e4m3", 8),
    19: ("f8_e5m2", 8),
    21: ("u4", 4),
    22: ("i4", 4),
    25: ("u2", 2),
    26: ("i2", 2),
}
"""TensorProto data type → our name and bits."""

_MAX_DIMENSIONS: Final = 16
_MAX_ELEMENTS: Final = 1 << 48
_MOST: Final = 64 * 1024 * 1024
"""Bytes of a tensor that is read whole: a bias, an order or an index, of a size that exists."""
_KEYS: Final = frozenset({"location", "offset", "length", "checksum", "basepath"})
_HUB_FOLDERS: Final = ("snapshots", "blobs")


@dataclass(frozen=True, slots=True)
class Initializer:
    """A tensor of the graph and where its data lies."""

    name: str
    dtype: str
    """Name of :data:`TYPES`."""
    shape: tuple[int, ...]
    path: Path
    offset: int | None
    """None for data in another form than its bytes."""
    nbytes: int
    data: bytes | None = None
    """The data itself where it has no offset."""

    def read(self, count: int | None = None) -> bytes:
        """All of the data, or its first ``count`` bytes; for small tensors. Raises CorruptFile."""
        count = self.nbytes if count is None else min(count, self.nbytes)
        if self.data is not None or self.offset is None:
            return (self.data or b"")[:count]
        if count > _MOST:
            raise CorruptFile(f"{self.path}: {self.name} has {count} bytes, too many for its use")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(count)
        if len(data) < count:
            raise CorruptFile(f"{self.path}: ends within {self.name}")
        return data


@dataclass(frozen=True)
class ModelFile:
    """A model file without its weights."""

    path: Path
    model: onnx.ModelProto
    initializers: Mapping[str, Initializer]

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph's file and every file with data of it."""
        return tuple(dict.fromkeys([self.path, *(i.path for i in self.initializers.values())]))


def read(path: Path) -> ModelFile:
    """Open a model file. Raises CorruptFile, UnsafePath, SourceNotFound and Unsupported."""
    import onnx
    from google.protobuf.message import DecodeError

    found = scan(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(found.message)
    except DecodeError as error:
        raise CorruptFile(f"{path}: the graph cannot be parsed: {error}") from error
    _check_texts(path, model)
    if model.graph.sparse_initializer:
        raise Unsupported(f"{path}: sparse initializers are not read")
    initializers: dict[str, Initializer] = {}
    for number, tensor in enumerate(model.graph.initializer):
        if not tensor.name or tensor.name in initializers:
            raise CorruptFile(
                f"{path}: initializer {number} has no name of its own: {tensor.name!r}"
            )
        initializers[tensor.name] = _initializer(path, found, number, tensor)
    _check_overlaps(path, initializers)
    return ModelFile(path, model, initializers)


def _check_texts(path: Path, model: onnx.ModelProto) -> None:
    """Raise CorruptFile for a text that is no UTF-8, which protobuf hands over as bytes."""
    graph = model.graph
    pairs = [*model.metadata_props, *(p for n in graph.node for p in n.metadata_props)]
    pairs += [e for tensor in graph.initializer for e in tensor.external_data]
    texts: list[object] = [text for p in pairs for text in (p.key, p.value)]
    named = (*graph.initializer, *graph.node, *graph.input, *graph.output)
    texts += [one.name for one in named]
    for node in graph.node:
        texts += [node.op_type, node.domain, *node.input, *node.output]
        texts += [a.name for a in node.attribute]
    for text in texts:
        if not isinstance(text, str):
            raise CorruptFile(f"{path}: {text!r} is no text; the graph is damaged")


def _initializer(path: Path, found: Scan, number: int, tensor: onnx.TensorProto) -> Initializer:
    where = f"{path}: initializer {tensor.name!r}"
    if tensor.data_type not in TYPES:
        raise Unsupported(f"{where} has data of type {tensor.data_type}, which is not read")
    dtype, bits = TYPES[tensor.data_type]
    shape = tuple(tensor.dims)
    if len(shape) > _MAX_DIMENSIONS or any(d < 0 for d in shape) or prod(shape) > _MAX_ELEMENTS:
        raise CorruptFile(f"{where} has the impossible shape {list(shape)}")
    nbytes = -(-prod(shape) * bits // 8)
    if tensor.data_location == tensor.EXTERNAL:
        if number in found.data:
            raise CorruptFile(f"{where} has its data inside and outside of the file")
        file, begin = _external(path, tensor, nbytes, where)
        return Initializer(tensor.name, dtype, shape, file, begin, nbytes)
    place = found.data.get(number)
    data = _typed(tensor, dtype) if place is None else None
    size = len(data or b"") if place is None else place[1]
    if size != nbytes:
        raise CorruptFile(f"{where} {dtype} {list(shape)} calls for {nbytes} bytes and has {size}")
    offset = None if place is None else place[0]
    return Initializer(tensor.name, dtype, shape, path, offset, nbytes, data)


def _typed(tensor: onnx.TensorProto, dtype: str) -> bytes:
    """Data that stands in a field of its type, as bytes."""
    import numpy as np
    import onnx.numpy_helper

    if dtype in {"u4", "i4", "u2", "i2"} or not prod(tensor.dims):
        return b""
    try:
        return np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes()
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"initializer {tensor.name!r}: {error}") from error


def _external(path: Path, tensor: onnx.TensorProto, nbytes: int, where: str) -> tuple[Path, int]:
    """File and offset of external data, checked."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries or entry.key not in _KEYS:
            raise CorruptFile(f"{where}: external data with the odd or repeated key {entry.key!r}")
        entries[entry.key] = entry.value
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries.get("length", str(nbytes)), "length", where)
    file = _contained(path, entries.get("location", ""), where)
    size = file.stat().st_size
    if length != nbytes:
        raise CorruptFile(f"{where} calls for {nbytes} bytes; its length is given as {length}")
    if offset + length > size:
        raise CorruptFile(_too_short(f"{where}: bytes {offset} to {offset + length}", file, size))
    return file, offset


def _too_short(what: str, file: Path, size: int) -> str:
    other = what_it_is(file)
    return f"{what} of {file}, which has {size}" + (f": it is {other}" if other else "")


def _number(text: str, key: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CorruptFile(f"{where}: the {key} of external data is no size: {text!r}")
    return int(text)


def _contained(path: Path, location: str, where: str) -> Path:
    """The file of a location. Raises UnsafePath where it is not a plain file of the folder."""
    parts = PurePosixPath(location).parts
    if (
        not parts
        or location.startswith("/")
        or any(p in {"..", "."} for p in location.split("/"))
        or re.search(r'[\\:*?"<>|\x00-\x1f]', location)
    ):
        raise UnsafePath(f"{where}: {location!r} does not name a file of the model's folder")
    folder, file = path.parent, path.parent
    try:
        for part in parts:
            file = file / part
            if file.is_symlink() and not _in_hub_cache(folder, file):
                raise UnsafePath(f"{where}: {file} is a link; only the Hub cache may have some")
        status = file.stat()
    except OSError as error:
        raise SourceNotFound(f"{where}: its data {file} is missing: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePath(f"{where}: {file} is no plain file")
    if status.st_nlink > 1:
        raise UnsafePath(
            f"{where}: {file} is hard-linked and may lie elsewhere too; copy it and try again"
        )
    return file


def _in_hub_cache(folder: Path, file: Path) -> bool:
    """True for ``…/snapshots/REVISION/…/file`` that leads to ``…/blobs/HASH`` of the same model."""
    snapshots, blobs = _HUB_FOLDERS
    places = [p for p in folder.absolute().parents if p.name == snapshots]
    target = Path(os.path.realpath(file))
    return any(target.parent == Path(os.path.realpath(p.parent / blobs)) for p in places)


def _check_overlaps(path: Path, initializers: Mapping[str, Initializer]) -> None:
    """Raise CorruptFile for two tensors that share some of their bytes and not all."""
    extents = {
        (str(i.path), i.offset, i.offset + i.nbytes, i.name)
        for i in initializers.values()
        if i.offset is not None and i.nbytes
    }
    for first, second in pairwise(sorted(extents)):
        if first[0] == second[0] and second[1] < first[2] and first[1:3] != second[1:3]:
            raise CorruptFile(
                f"{path}: the data of {first[3]!r} and {second[3]!r} overlap in {first[0]}"
            )
