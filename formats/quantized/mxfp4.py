"""Folders whose experts are in MXFP4 (``quant_method: mxfp4``), as gpt-oss is released.

The experts of a layer stand in two arrays in the place of one of floats, as
:mod:`zenconvert.formats.fp4_packing` says; rows of gate and up are there in turn. They are ggml's
blocks with their bits in another order, and are read as these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, Unsupported
from zenconvert.formats.fp4_packing import BLOCKS, ENCODING, SCALES, StackCodec
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import by_stack
from zenconvert.formats.quantized.packed import Packed
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import StoredPieces, StoredTensor, Tensor
from zenconvert.model.tensor_names import stack_shape


def read(folder: Folder, settings: Mapping[str, Any]) -> Packed:
    """The experts in blocks; ``settings`` name modules that are not, as the entries show, too.

    Raises MissingTensor, CorruptFile, Unsupported, and InvalidInput where nothing is in blocks.
    """
    del settings
    packed = Packed()
    for stored, names in by_stack(folder.architecture.tensor_names(folder.hyperparameters)).items():
        arrays = {p: folder.entries.get(f"{stored}_{p}") for p in (BLOCKS, SCALES)}
        there = {piece: entry for piece, entry in arrays.items() if entry is not None}
        if not there:
            continue
        if missing := [piece for piece, entry in arrays.items() if entry is None]:
            beside = next(iter(there.values()))
            raise MissingTensor(f"{beside.path}: {stored}_{missing[0]} is missing")
        if (floats := folder.entries.get(names[0].hf)) is not None:
            raise CorruptFile(f"{floats.path}: {stored} is there in floats, too")
        tensors = tuple(_experts(folder, there, names))
        packed.stacks |= {entry.name: tensors for entry in there.values()}
    if not packed.stacks:
        raise InvalidInput(f"{folder.path}: the config speaks of MXFP4 and no expert is in blocks")
    return packed


def _experts(
    folder: Folder, arrays: Mapping[str, Entry], names: Sequence[TensorName]
) -> Iterator[Tensor]:
    if not names[0].module.hf_turned:
        raise Unsupported(
            f"{folder.path}: experts of {folder.architecture.id} models in MXFP4: where the rows "
            "of their modules lie is not known"
        )
    codec, (experts, columns, rows) = StackCodec(), stack_shape(names)
    shape, (_, parts) = (experts, rows, columns), names[0].module.hf_stack_part
    if columns % ENCODING.block_size:
        raise CorruptFile(f"{folder.path}: rows of {columns} are no blocks of MXFP4")
    for piece in codec.pieces(ENCODING, shape):
        entry = arrays[piece.name]
        if (entry.dtype, entry.shape) != (piece.dtype, piece.shape):
            raise CorruptFile(
                f"{entry.path}: {entry.name} is {entry.dtype} {list(entry.shape)}; the config "
                f"calls for {piece.dtype} {list(piece.shape)}"
            )
    for name in names:
        first = (name.expert or 0) * rows + name.module.hf_stack_part[0]
        places = {}
        for piece in codec.pieces(ENCODING, name.shape):
            entry, line = arrays[piece.name], piece.shape[1]
            offset = entry.offset + first * line
            places[piece.name] = StoredTensor(entry.path, offset, entry.name, parts * line)
        module = name.hf.removesuffix(".weight")
        stored = StoredPieces(module, codec, ENCODING, places)
        yield Tensor(name.name, name.shape, ENCODING, stored)
