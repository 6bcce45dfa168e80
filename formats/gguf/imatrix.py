"""llama.cpp importance matrices: GGUF files with Σx² per input channel of each weight.

``<tensor>.in_sum2`` f32[experts, columns] and ``<tensor>.counts`` f32[experts, 1]; the weight of a
channel is sum / count, the count rounded to an integer first. An expert that never fired has count
0 and weighs every channel the same. ``imatrix.datasets``, ``imatrix.chunk_count`` and
``imatrix.chunk_size`` must be there. Tensors with other suffixes are ignored, by llama.cpp too:
ours add ``<tensor>.in_sum2.<language>`` and ``<tensor>.counts.<language>``.

The older format (``imatrix.dat``) is read as well: i32 number of entries; per entry i32 length and
name, i32 calls, i32 length and f32 values; the weight is value / calls.

Source: ``llama-imatrix``, and ``load_imatrix`` in llama.cpp's quantize.cpp.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.source_files import read_bytes
from zenconvert.errors import (
    CorruptFile,
    InputWarning,
    InvalidInput,
    SourceNotFound,
    UsageError,
)
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.container import GgufFile, KeyValue, TensorInfo
from zenconvert.formats.gguf.reader import stored_form
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.architecture import TensorName
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.operations import change_named, moved

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"

_LONGEST_NAME: Final = 63  # GGML_MAX_NAME, without the final zero
_LARGEST: Final = 1 << 32
"""Bytes of a file in the older format; those of the largest models take a quarter."""
_LARGEST_SUMS: Final = 1 << 28
"""Bytes of a tensor: those of 1024 experts of 65,536 inputs."""
_I32: Final = struct.Struct("<i")

Values = Mapping[str, NDArray[np.float32]]


def read_importance(
    path: Path, names: Sequence[TensorName], hp: Hyperparameters | None = None
) -> dict[str, NDArray[np.float32]]:
    """Importance f32[columns] by neutral name, for the tensors that the file covers; ``hp`` are the
    model's, where GGUF may have columns in another order.

    Raises CorruptFile when the file is no imatrix and InvalidInput when nothing in it fits.
    """
    found = _read_gguf(path) if _is_gguf(path) else _read_legacy(path)
    importance: dict[str, NDArray[np.float32]] = {}
    halves = {stored for n in names if n.gguf_values is not None for stored in n.gguf_files}
    left = [stored for stored in found if stored in halves]
    found = {stored: values for stored, values in found.items() if stored not in halves}
    names = [n for n in names if n.gguf_values is None]
    experts = {name.gguf: (name.expert or 0) + 1 for name in names}
    for name in names:
        if name.gguf not in found:
            continue
        values, columns = found[name.gguf], name.shape[-1]
        if values.size != experts[name.gguf] * columns:
            raise InvalidInput(
                f"{path}: {name.gguf} has {values.size} values and the model takes "
                f"{experts[name.gguf]} × {columns}; the file is of another model"
            )
        own = values.reshape(-1, columns)[name.expert or 0]
        change = stored_form(name, hp)[1] if hp is not None else None
        importance[name.name] = moved(own, change and change_named(change).undone_by)
    if not importance:
        raise InvalidInput(f"{path}: none of its tensors is in this model")
    for text in (*_misfits(found, names), *_left(left)):
        warnings.warn(InputWarning(f"{path}: {text}"), stacklevel=2)
    return importance


def _left(names: Sequence[str]) -> list[str]:
    """Entries of tensors whose every head has weights of its own, which are not read."""
    text = "entries of tensors whose heads have weights of their own are not used"
    return [f"{len(names)} {text}: {', '.join(names[:3])}"] if names else []


def _misfits(found: Values, names: Sequence[TensorName]) -> Iterator[str]:
    """Which matrices the file does not cover, and which of its entries are no matrix's."""
    read = [n for n in names if n.module.role == "linear" and not n.unread]
    matrices = dict.fromkeys(n.gguf for n in read)
    for text, odd, of in (
        ("of the model's {of} matrices without importance weights in it", matrices, found),
        ("of its {of} entries for tensors that the model has not", found, {n.gguf for n in names}),
    ):
        if missing := [name for name in odd if name not in of]:
            first = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            yield f"{len(missing)} {text.format(of=len(odd))}: {first}"


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == container.MAGIC
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error


def _read_gguf(path: Path) -> Values:
    file = container.read(path)
    if file.metadata.get("general.type") != ("str", "imatrix"):
        raise CorruptFile(f"{path}: general.type should be 'imatrix'; is this an imatrix file?")
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    return {name: _weights(file, name) for name in names}


def _weights(file: GgufFile, name: str) -> NDArray[np.float32]:
    """Sum / count, f32[experts, columns]; ones where the count is 0."""
    sums = _read(file, f"{name}{SUMS}")
    counts = np.floor(_read(file, f"{name}{COUNTS}").reshape(-1, 1) + np.float32(0.5))
    if sums.size % len(counts):
        raise CorruptFile(f"{file.path}: {name} has {sums.size} sums and {len(counts)} counts")
    sums = sums.reshape(len(counts), -1)
    weights = np.ones_like(sums)
    np.divide(sums, counts, out=weights, where=counts > 0)
    return _checked(file.path, name, weights)


def _checked(path: Path, name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise CorruptFile(f"{path}: {name} has sums that are negative or not finite")
    return weights


def _read(file: GgufFile, name: str) -> NDArray[np.float32]:
    info: TensorInfo | None = file.tensors.get(name)
    if info is None or info.type is None or info.type.name != "f32":
        raise CorruptFile(f"{file.path}: the f32 tensor {name!r} is missing")
    if info.nbytes > _LARGEST_SUMS:
        raise CorruptFile(f"{file.path}: {name!r} has {info.nbytes} bytes, too many for its use")
    with file.path.open("rb") as handle:
        handle.seek(info.offset)
        return np.frombuffer(handle.read(info.nbytes), dtype="<f4").reshape(info.shape)


def _read_legacy(path: Path) -> Values:
    """Values by tensor name, of a file in the older format."""
    data, at = read_bytes(path, _LARGEST), 0

    def take(count: int) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise CorruptFile(f"{path}: this is no imatrix file, or it is damaged at byte {at}")
        at += count
        return data[at - count : at]

    def integer() -> int:
        return int(_I32.unpack(take(4))[0])

    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(integer()):
        name = take(integer()).decode("utf-8", errors="replace")
        calls, count = integer(), integer()
        values = np.frombuffer(take(4 * count), dtype="<f4").astype(np.float32)
        if calls > 0:
            values /= np.float32(calls)
        found[name] = _checked(path, name, values)
    return found


@dataclass(frozen=True, slots=True)
class Sums:
    """Σx² of one weight: f32[experts, columns], and the tokens of each expert, i64[experts]."""

    squares: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ImatrixEntry:
    """One weight of an imatrix file; its numbers are read when they are written."""

    name: str
    """GGUF name of the weight; experts of a layer share it."""
    experts: int
    """1 for a dense weight."""
    columns: int
    load: Callable[[], Mapping[str, Sums]]
    """Sums over all languages under the empty name, and those of every language."""
    change: str | None = None
    """What becomes of the columns in GGUF."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What an imatrix file says of the texts that it was computed from."""

    names: Sequence[str]
    chunks: int
    """Windows that they were cut into."""
    chunk_size: int


def write_imatrix(
    file: BinaryIO, entries: Sequence[ImatrixEntry], languages: Sequence[str], texts: Texts
) -> None:
    """Write an imatrix file.

    Raises UsageError for a language whose name makes a tensor's name too long for llama.cpp.
    """
    header, _ = _laid_out(entries, languages, texts)
    file.write(header)
    for entry in sorted(entries, key=lambda entry: entry.name):
        sums = entry.load()
        for language in ("", *languages):
            squares = np.stack([moved(row, entry.change) for row in sums[language].squares])
            for values in (squares, sums[language].counts):
                data = values.astype("<f4").tobytes()
                file.write(data + bytes(_padded(len(data)) - len(data)))


def imatrix_size(entries: Sequence[ImatrixEntry], languages: Sequence[str], texts: Texts) -> int:
    """Bytes of such a file; nothing is loaded. Raises as :func:`write_imatrix`."""
    header, size = _laid_out(entries, languages, texts)
    return len(header) + size


def _laid_out(
    entries: Sequence[ImatrixEntry], languages: Sequence[str], texts: Texts
) -> tuple[bytes, int]:
    """The header, and the bytes of the data behind it."""
    metadata: dict[str, KeyValue] = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("arr:str", list(texts.names)),
        "imatrix.chunk_count": ("u32", texts.chunks),
        "imatrix.chunk_size": ("u32", texts.chunk_size),
    }
    infos: list[tuple[str, tuple[int, ...], int, int]] = []
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.name):
        for suffix, shape in _parts(entry, languages):
            name = f"{entry.name}{suffix}"
            if len(name.encode()) > _LONGEST_NAME:
                raise UsageError(f"{name!r} is too long a name for llama.cpp; rename the language")
            infos.append((name, shape, BY_NAME["f32"].id, at))
            at += _padded(4 * shape[0] * shape[1])
    return container.pack_header(metadata, infos), at


def _parts(entry: ImatrixEntry, languages: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """Suffix and shape of every tensor of an entry, in file order."""
    return [
        (f"{kind}.{language}" if language else kind, (entry.experts, columns))
        for language in ("", *languages)
        for kind, columns in ((SUMS, entry.columns), (COUNTS, 1))
    ]


def _padded(size: int) -> int:
    return -(-size // container.DEFAULT_ALIGNMENT) * container.DEFAULT_ALIGNMENT
