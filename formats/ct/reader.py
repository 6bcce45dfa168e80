"""compressed-tensors folders: integers, packed or not, and 8-bit floats, weight by weight.

``quantization_config`` has a ``format`` (of the whole, or of every group of modules) and
``config_groups`` with the arguments of their weights. Bits, groups and zeros are read off the
arrays, which cannot lie; the config says which arrays there must be, and what else was done.

Source: compressed_tensors' ``quant_config`` and its compressors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, Unsupported
from zenconvert.formats import quantization, quantized
from zenconvert.formats.ct.codec import BITS, INDEX, PACKED, PLAIN, SCALE, SHAPE, ZERO, IntCodec
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import foreign
from zenconvert.formats.packed_folder import packed_tensor, values_of, weights
from zenconvert.formats.quantized import fp8
from zenconvert.formats.quantized.fp8 import Tile
from zenconvert.formats.quantized.packed import Packed
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import Dense, Grouped

FORMATS: Final = frozenset(
    {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"}
)
_OF_INPUTS: Final = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
_OF_CACHE: Final = ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point")
_FLOATS: Final = frozenset({"f32", "f16", "bf16"})


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder: config and safetensors headers, and the small arrays that settle them.

    Raises the errors of the HF reader, and those of :func:`read`.
    """
    found = quantization.of_folder(path)
    return quantized.opened(path, read, {} if found is None else found.table, "ct")


def read(folder: Folder, settings: Mapping[str, Any]) -> Packed:
    """The quantized tensors. Raises Unsupported, MissingTensor, CorruptFile or InvalidInput."""
    groups = list(_groups(folder, settings))
    tiles = [tile for weights in groups for tile in _tiles(folder, weights)]
    packed = fp8.read_scaled(folder, tiles, *fp8.ACTIVATIONS, *_OF_INPUTS, *_OF_CACHE)
    known = weights(folder)
    needs_zeros = bool(groups) and all(weights.get("symmetric") is False for weights in groups)
    for name, entry in folder.entries.items():
        module, _, last = name.rpartition(".")
        if last == PACKED or (last == PLAIN and entry.dtype == "i8"):
            if f"{module}.weight" not in known:
                layers = folder.hyperparameters.layers
                raise foreign(str(folder.path), folder.architecture.id, layers, [name])
            tensor = _tensor(folder, module, known[f"{module}.weight"], entry)
            if needs_zeros and f"{module}.{ZERO}" not in folder.entries:
                raise MissingTensor(f"{entry.path}: {module}.{ZERO} is missing beside {name}")
            pieces = (last, SCALE, ZERO, INDEX)
            packed.by_entry |= {f"{module}.{p}": tensor for p in pieces if _has(folder, module, p)}
            if last == PACKED:
                _check_shape(folder, module, tensor)
                packed.left.add(f"{module}.{SHAPE}")
    packed.refuse_extra(folder, (SCALE, ZERO, INDEX, SHAPE))
    if not packed.by_entry:
        raise InvalidInput(f"{folder.path}: no weight is quantized, and the config speaks of it")
    return packed


def _groups(folder: Folder, settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Arguments of the weights of every group. Raises Unsupported for what is not read."""
    where, groups = folder.path / "config.json", settings.get("config_groups")
    groups = {} if groups is None else groups
    if not isinstance(groups, Mapping) or not all(isinstance(g, Mapping) for g in groups.values()):
        raise CorruptFile(f"{where}: config_groups should map names to objects")
    named = [settings.get("format"), *(group.get("format") for group in groups.values())]
    formats = {None if name is None else str(name) for name in named}
    if unknown := sorted(f for f in formats if f is not None and f not in FORMATS):
        raise Unsupported(
            f"{folder.path}: weights compressed as {unknown[0]} are not read; formats that are: "
            f"{', '.join(sorted(FORMATS))}"
        )
    if settings.get("transform_config"):
        raise Unsupported(f"{folder.path}: transforms of weights (transform_config) are not undone")
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise Unsupported(f"{folder.path}: sparse weights (sparsity_config) are not read")
    for group in groups.values():
        weights = group.get("weights")
        if isinstance(weights, Mapping):
            yield weights


def _tiles(folder: Folder, weights: Mapping[str, Any]) -> Iterator[Tile]:
    """What shares a scale by the config."""
    match weights.get("strategy"), weights.get("group_size"):
        case "block", _:
            yield fp8.block(folder, weights.get("block_structure"), "block_structure")
        case "group", int(size) if size > 0:
            yield 1, size
        case "channel", _:
            yield 1, None
        case "tensor", _:
            yield None, None


def _has(folder: Folder, module: str, piece: str) -> bool:
    return f"{module}.{piece}" in folder.entries


def _tensor(folder: Folder, module: str, name: TensorName, codes: Entry) -> Tensor:
    if (scales := folder.entries.get(f"{module}.{SCALE}")) is None:
        raise MissingTensor(f"{codes.path}: {module}.{SCALE} is missing beside {codes.name}")
    if scales.dtype not in _FLOATS:
        raise CorruptFile(f"{scales.path}: {scales.name}: scales are {scales.dtype}, and no floats")
    if len(name.shape) != 2 or len(codes.shape) != 2:
        raise CorruptFile(f"{codes.path}: {codes.name} {list(codes.shape)} is no matrix")
    columns, is_packed = name.shape[1], codes.name.endswith(PACKED)
    bits = codes.shape[1] * 32 // columns if is_packed else 8
    if bits not in BITS:
        raise Unsupported(f"{codes.path}: {codes.name} has {bits} bits a code; read are 4 and 8")
    shared = scales.shape in {(), (1,)}
    groups = 1 if shared or len(scales.shape) != 2 else scales.shape[1]
    if not groups or columns % groups:
        raise CorruptFile(
            f"{scales.path}: {scales.name} {list(scales.shape)}: {columns} columns are no {groups} "
            "groups of one size"
        )
    zeros, index = folder.entries.get(f"{module}.{ZERO}"), folder.entries.get(f"{module}.{INDEX}")
    group = None if groups == 1 else columns // groups
    plain = [column // (group or columns) for column in range(columns)]
    order = None if index is None else values_of(index).tolist()
    unset = order is not None and -1 in order[:1]  # as they are before anything is calibrated
    encoding = Grouped(
        bits,
        group,
        symmetric=zeros is None,
        scale=Dense(scales.dtype),
        ordered=order is not None and not unset and order != plain,
    )
    codec = IntCodec(
        columns if is_packed else None,
        packed_zeros=zeros is not None and zeros.dtype == "i32",
        index=index is not None and not unset,
        shared=shared,
    )
    return packed_tensor(folder, module, name, encoding, codec)


def _check_shape(folder: Folder, module: str, tensor: Tensor) -> None:
    """Raise MissingTensor or CorruptFile unless weight_shape says what the config does."""
    entry = folder.entries.get(f"{module}.{SHAPE}")
    if entry is None:
        raise MissingTensor(f"{folder.path}: {module}.{SHAPE} is missing")
    found = values_of(entry).tolist() if entry.nbytes <= 64 else entry.shape
    if found != list(tensor.shape):
        raise CorruptFile(
            f"{entry.path}: {entry.name} says {found}; the config calls for {list(tensor.shape)}"
        )
