"""What was found in a graph → tensors of the model, by neutral name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    UnexpectedTensor,
    Unsupported,
    first_names,
    several,
)
from zenconvert.formats.onnx.read.container import Initializer, ModelFile
from zenconvert.formats.onnx.read.dialects import Names
from zenconvert.formats.onnx.read.graph_view import GraphView
from zenconvert.formats.onnx.read.matrices import Matrix
from zenconvert.formats.onnx.read.recognition import Found
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.checkpoint import StoredPieces, StoredTensor, Tensor
from zenconvert.model.encoding import Dense
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.pieces import ROW_UNIT

_SMALL: Final = 4096
"""Elements of a tensor that may be left over: constants of the graph."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows of a tensor of the graph that are a tensor of the model."""

    first: int
    rows: int


def name_tensors(
    view: GraphView, found: Iterable[Found], architecture: Architecture, hp: Hyperparameters
) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor of the model, and what is odd about them.

    Raises MissingTensor, UnexpectedTensor, and InvalidInput for shapes that the config contradicts.
    """
    known = {_key(n): n for n in architecture.tensor_names(hp)}
    names, tensors = Names(architecture, hp), dict[str, Tensor]()
    file, used = view.file, _rotations(view)
    for item in found:
        modules = _modules(item, names)
        suffix = "bias" if item.role == "bias" else "weight"
        wanted = [known[key] for m in modules if (key := f"{m}.{suffix}") in known]
        if not wanted or len(wanted) < len(modules):
            used |= _without_effect(item, modules, file)
            continue
        for name, part in zip(wanted, _slices(item, wanted, file), strict=True):
            tensor = _tensor(item, name, part)
            if item.role == "norm" and architecture.block.norms_add_one:
                tensor = replace(tensor, change="take_one")  # graphs multiply by what they hold
            _add(tensors, name, tensor, file)
        used |= _arrays(item)
    tied, warnings = _is_tied(tensors, hp), []
    head = tensors.pop("head.weight") if tied else None
    if head is not None and _place(head) != _place(tensors["embed.weight"]):
        warnings.append(
            f"{file.path}: the config says that the head is the embedding; the head of the graph "
            "is taken for a copy and left out"
        )
    _check_complete(file, known.values(), tensors, used, tied=tied)
    order = {n.name: i for i, n in enumerate(known.values())}
    return dict(sorted(tensors.items(), key=lambda t: order[t[0]])), warnings


def _without_effect(item: Found, modules: Sequence[str], file: ModelFile) -> set[str]:
    """The array of a bias where the model has none: zeros. Raises UnexpectedTensor for others."""
    if item.role != "bias" or not modules:
        return set()
    assert item.vector is not None
    if any(item.vector.read()):
        raise UnexpectedTensor(
            f"{file.path}: {item.vector.name!r} is added in {modules[0]}, which has no bias in "
            "models of this kind"
        )
    return _arrays(item)


def _key(name: TensorName) -> str:
    return f"{name.hf_module}.{'weight' if name.is_weight else 'bias'}"


def _modules(item: Found, names: Names) -> tuple[str, ...]:
    if item.role == "embed":
        return (names.table(item.texts),)
    return names.modules(item.texts)


def _arrays(item: Found) -> set[str]:
    if item.matrix is not None:
        return {array.name for array in item.matrix.arrays.values()}
    assert item.vector is not None  # it is one or the other
    return {item.vector.name}


def _slices(item: Found, wanted: Sequence[TensorName], file: ModelFile) -> list[_Slice]:
    """The rows of every tensor in what was found; one after another where they are fused."""
    if item.matrix is not None:
        shape: tuple[int, ...] = item.matrix.shape
    else:
        assert item.vector is not None
        shape = item.vector.shape
    rows = sum(name.shape[0] for name in wanted)
    if shape != (rows, *wanted[0].shape[1:]):
        raise InvalidInput(
            f"{file.path}: {' + '.join(n.hf for n in wanted)} has shape {list(shape)} in the "
            f"graph; the config calls for {[rows, *wanted[0].shape[1:]]}"
        )
    found, first = [], 0
    for name in wanted:
        found.append(_Slice(first, name.shape[0]))
        first += name.shape[0]
    return found


def _tensor(item: Found, name: TensorName, part: _Slice) -> Tensor:
    if item.matrix is None:
        assert item.vector is not None
        return _vector(item.vector, name, part)
    matrix = item.matrix
    if (numbers := matrix.encoding.dense) is not None:
        return _dense(matrix, numbers, name, part)
    return _grouped(matrix, name, part)


def _vector(array: Initializer, name: TensorName, part: _Slice) -> Tensor:
    encoding = Dense(array.dtype)
    offset = _offset(array) + part.first * encoding.numpy.itemsize
    return Tensor(name.name, name.shape, encoding, StoredTensor(array.path, offset, array.name))


def _dense(matrix: Matrix, encoding: Dense, name: TensorName, part: _Slice) -> Tensor:
    array = matrix.arrays[""]
    size, (rows, columns) = encoding.numpy.itemsize, matrix.shape
    row, stride = (size, rows * size) if matrix.transposed else (columns * size, None)
    stored = StoredTensor(array.path, _offset(array) + part.first * row, array.name, stride)
    return Tensor(name.name, name.shape, encoding, stored)


def _grouped(matrix: Matrix, name: TensorName, part: _Slice) -> Tensor:
    """A grouped tensor, or some rows of one."""
    encoding, codec, places = matrix.encoding.grouped, matrix.codec, {}
    assert encoding is not None
    assert codec is not None
    for piece in codec.pieces(encoding, matrix.shape):
        array = matrix.arrays[piece.name]
        if part.first * piece.items % ROW_UNIT:
            raise Unsupported(f"{array.path}: {array.name!r}: {name.hf} begins inside a byte")
        first, line = part.first * piece.items // ROW_UNIT, piece.nbytes // piece.shape[0]
        stride: int | None
        if piece.axis == 1:
            step, stride = line // piece.shape[1], line
        else:
            step = line * matrix.step
            stride = step if matrix.step > 1 else None
        offset = _offset(array) + matrix.first * line + first * step
        places[piece.name] = StoredTensor(array.path, offset, array.name, stride)
    stored = StoredPieces(name.hf, codec, encoding, places)
    return Tensor(name.name, name.shape, encoding, stored)


def _offset(array: Initializer) -> int:
    if array.offset is None:
        raise Unsupported(f"{array.path}: {array.name!r} is a weight, and not stored as raw data")
    return array.offset


def _add(tensors: dict[str, Tensor], name: TensorName, tensor: Tensor, file: ModelFile) -> None:
    old = tensors.get(name.name)
    if old is not None and old != tensor:
        raise CorruptFile(f"{file.path}: there are two different tensors for {name.hf}")
    tensors[name.name] = tensor


def _rotations(view: GraphView) -> set[str]:
    """Tables of cosines and sines, where a graph chooses by the length of the text, too."""
    takers = (n for n in view.nodes if n.op_type in {"GroupQueryAttention", "RotaryEmbedding"})
    values = {value for node in takers for value in node.input}
    for value in tuple(values):
        if (choice := view.producer(value, "If")) is not None:
            values |= {v for a in choice.attribute for n in a.g.node for v in n.input}
    return {array.name for v in values if (array := view.initializer(v)) is not None}


def _is_tied(tensors: dict[str, Tensor], hp: Hyperparameters) -> bool:
    """True where the head is the embedding, or a copy of it by what the config says."""
    embed, head = tensors.get("embed.weight"), tensors.get("head.weight")
    if embed is None or head is None:
        return False
    copied = hp.tied and not head.encoding.is_quantized
    return copied or _place(embed) == _place(head)


def _place(tensor: Tensor) -> tuple[Path, int]:
    stored = tensor.stored
    if isinstance(stored, StoredPieces):
        first = next(iter(stored.pieces.values()))
        return first.path, first.offset
    assert isinstance(stored, StoredTensor)  # graphs have nothing else
    return stored.path, stored.offset


def _check_complete(
    file: ModelFile,
    known: Iterable[TensorName],
    tensors: Mapping[str, Tensor],
    used: set[str],
    *,
    tied: bool,
) -> None:
    needed = [n for n in known if n.required and not (tied and n.module.role == "head")]
    missing = [n.hf for n in needed if n.name not in tensors]
    if missing:
        raise MissingTensor(
            f"{file.path}: {several(len(missing), 'tensor', 'tensors')} of the model cannot be "
            f"found in the graph: {first_names(missing)}"
        )
    floats = {"f32", "f16", "bf16", "f64", "u8", "i8", "u4", "i4", "u2", "i2"}
    for array in file.initializers.values():
        large = len(array.shape) > 1 and array.nbytes > _SMALL and array.dtype in floats
        if large and array.name not in used:
            raise UnexpectedTensor(
                f"{file.path}: {array.name!r} {array.dtype} {list(array.shape)} is in the graph "
                "and no weight of the model; adapters and extra branches cannot be taken apart"
            )
