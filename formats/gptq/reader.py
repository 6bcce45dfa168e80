"""GPTQ folder → checkpoint: files of AutoGPTQ, GPTQModel, auto-round and our own.

Bits and groups are read off the shapes, which cannot lie; the config says whether zeros are
symmetric, and whether they are stored less one (version 1). Where the zeros of symmetric modules
contradict the label, the data holds: such files exist in the wild.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile, InvalidInput, Unsupported, several
from zenconvert.formats import int_packing, packed_folder, quantization
from zenconvert.formats.gptq import labels, settings
from zenconvert.formats.gptq.codec import GptqCodec, ZeroRule
from zenconvert.formats.gptq.settings import Settings
from zenconvert.formats.hf.reader import Folder, name_tensors, open_folder, without_spare_biases
from zenconvert.formats.packed_folder import ReadAt
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, StoredPieces, Tensor
from zenconvert.model.encoding import Dense, Grouped

_SAMPLE: Final = 4
"""About as many modules are looked at to find out how zeros are stored."""
_COLUMNS: Final = 128
_FEW_BITS: Final = 4
_NEAR: Final = 0.25
"""Steps by which the mean of some thousand weights may be off."""
_BIAS_KEYS: Final = ("attention_bias", "mlp_bias")
"""Config keys by which a model has biases that others of its family have not."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GPTQ folder: headers, and the small side tensors that decide what they mean.

    Raises the errors of the HF reader, Unsupported for layouts that cannot be read.
    """
    said_by = quantization.of_folder(path)
    table = said_by.table if said_by is not None else {}
    said = settings.parse(path, table)
    folder = open_folder(path, settings.stems(table))
    modules = packed_folder.modules(folder)
    if not modules:
        raise InvalidInput(f"{path}: the config speaks of GPTQ and no weight is quantized")
    with packed_folder.reading() as read:
        tensors = {m: _tensor(folder, m, name, said, read) for m, name in modules.items()}
        tensors, warnings = _with_true_zeros(path, tensors, said, read)
    warnings += [f"{path}: {text}" for text in labels.differences(table, said, tensors)]
    spare = _spare_biases(folder, modules)
    folder = replace(folder, entries={k: v for k, v in folder.entries.items() if k not in spare})
    folder = without_spare_biases(folder)
    named = name_tensors(folder, packed_folder.by_entry(folder, tensors))
    if spare:
        left = several(len(spare), "bias of zeros is", "biases of zeros are")
        warnings.append(f"{path}: {left} left out, which the model has not")
    return folder.checkpoint("gptq", named, warnings)


def _tensor(folder: Folder, module: str, name: TensorName, said: Settings, read: ReadAt) -> Tensor:
    codes = packed_folder.entry_of(folder, module, "qweight")
    scales = packed_folder.scales_of(folder, module)
    _, columns = name.shape
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[0] * 32 % columns:
        raise CorruptFile(
            f"{codes.path}: {codes.name} {list(codes.shape)} and scales {list(scales.shape)} do "
            f"not fit a weight {list(name.shape)}"
        )
    bits, groups = codes.shape[0] * 32 // columns, scales.shape[0]
    if not 2 <= bits <= 8 or not groups:
        hint = "; its codes lie as AWQ's do: quant_method should be awq" if bits == 32 else ""
        raise Unsupported(
            f"{codes.path}: {codes.name} has {bits} bits a code; known are 2 to 8{hint}"
        )
    index = folder.entries.get(f"{module}.g_idx")
    encoding = Grouped(
        bits,
        _group(columns, groups, codes),
        said.symmetric,
        Dense(scales.dtype),
        ordered=index is not None and labels.is_ordered(index, columns, groups, read),
    )
    codec = GptqCodec(said.rule, index is not None, said.version == settings.PLANAR)
    return packed_folder.packed_tensor(folder, module, name, encoding, codec)


def _group(columns: int, groups: int, entry: Entry) -> int | None:
    if groups == 1:
        return None
    if columns % groups:
        raise Unsupported(
            f"{entry.path}: {entry.name}: {columns} inputs in {groups} groups are groups of "
            "unequal size"
        )
    return columns // groups


def _with_true_zeros(
    path: Path, tensors: dict[str, Tensor], said: Settings, read: ReadAt
) -> tuple[dict[str, Tensor], list[str]]:
    """Look at the zeros of some symmetric modules: do they say what the label says?"""
    if not said.symmetric:
        return _by_means(path, tensors, said)
    sample = dict(list(tensors.items())[:: max(1, len(tensors) // _SAMPLE)])
    found = {module: _stored_midpoint(tensor) for module, tensor in sample.items()}
    label, warnings = -1 if said.version == settings.VERSION_1 else 0, []
    (offset, count), *_ = Counter(found.values()).most_common(1)
    if offset not in {label, -1 - label} or 2 * count <= len(found):
        if set(found.values()) - {label, None}:
            warnings.append(
                f"the zeros are not those of symmetric {said.version}, and read as it says"
            )
        warnings.append("labelled symmetric, and zeros differ")
        tensors = {m: _as_asymmetric(t) for m, t in tensors.items()}
        return tensors, [f"{path}: {warning}" for warning in warnings]
    if offset != label:
        actual = settings.VERSION_1 if label == 0 else settings.VERSION_2
        rule: ZeroRule = "plus_one" if label == 0 else "as_is"
        warnings.append(f"labelled {said.version}, and its zeros are those of {actual}: read so")
        tensors = {m: _with_rule(t, rule) for m, t in tensors.items()}
    odd = {module for module, one in found.items() if one != offset}
    odd |= labels.with_other_zeros(tensors, offset, read)
    if odd:
        warnings.append(
            f"labelled symmetric, and zeros differ{packed_folder.among(odd, tensors)}: "
            "read as they are"
        )
        tensors |= {module: _as_asymmetric(tensors[module]) for module in odd}
    return tensors, [f"{path}: {warning}" for warning in warnings]


def _by_means(
    path: Path, tensors: dict[str, Tensor], said: Settings
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights are 0 on average: under the other version's label they are a step beside it."""
    expected = 1 if said.version == settings.VERSION_1 else 0
    sample = list(tensors.values())[:: max(1, len(tensors) // _SAMPLE)]
    grids = [grid for tensor in sample if (grid := tensor.encoding.grouped) is not None]
    if said.version == settings.PLANAR or any(grid.bits > _FEW_BITS for grid in grids):
        return tensors, []  # where steps are that small, an average is no proof
    means = [_mean_level(tensor) for tensor in sample]
    if any(abs(mean - (1 - expected)) > _NEAR for mean in means):
        return tensors, []
    actual = settings.VERSION_2 if expected else settings.VERSION_1
    rule: ZeroRule = "as_is" if expected else "plus_one"
    warning = (
        f"{path}: labelled {said.version}, and with its zeros all weights are a step off on "
        f"average; with those of {actual} they are not: read so"
    )
    return {m: _with_rule(t, rule) for m, t in tensors.items()}, [warning]


def _mean_level(tensor: Tensor) -> float:
    """Mean of code − stored zero over the first columns of a tensor."""
    stored, encoding = tensor.stored, tensor.encoding.grouped
    assert isinstance(stored, StoredPieces)
    assert encoding is not None
    assert isinstance(stored.codec, GptqCodec)
    arrays = {}
    count = min(tensor.columns, _COLUMNS)
    for piece in stored.codec.pieces(encoding, tensor.shape):
        place, shape = stored.pieces[piece.name], piece.shape
        if piece.name == "qweight":
            shape = (int_packing.words(count, encoding.bits), shape[1])
        size = piece.nbytes // piece.shape[0] * shape[0]
        entry = Entry(place.name, piece.dtype, shape, place.path, place.offset, size)
        arrays[piece.name] = packed_folder.values_of(entry)
    codes = int_packing.unpack(arrays["qweight"], encoding.bits, count)
    zeros = _zeros_as_stored(tensor, arrays)
    groups = np.arange(tensor.columns) // (encoding.group or tensor.columns)
    index = arrays.get("g_idx", groups)[:count].clip(0, zeros.shape[1] - 1)
    return float((codes.astype(np.int16) - zeros.T[index]).mean())


def _stored_midpoint(tensor: Tensor) -> int | None:
    """What was added to the midpoint where every stored zero is that; None where they differ."""
    stored, encoding = tensor.stored, tensor.encoding.grouped
    assert isinstance(stored, StoredPieces)
    assert encoding is not None
    place = stored.pieces["qzeros"]
    piece = next(p for p in stored.codec.pieces(encoding, tensor.shape) if p.name == "qzeros")
    entry = Entry(place.name, "i32", piece.shape, place.path, place.offset, piece.nbytes)
    arrays = {
        "qzeros": packed_folder.values_of(entry),
        "scales": np.zeros((piece.shape[0], tensor.rows), np.float16),
    }
    zeros = _zeros_as_stored(tensor, arrays)
    offset = int(zeros.flat[0]) - (1 << (encoding.bits - 1))
    return offset if bool((zeros == zeros.flat[0]).all()) else None


def _zeros_as_stored(tensor: Tensor, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """uint8[rows, groups], without what a version adds. Raises InvalidInput."""
    stored, encoding = tensor.stored, tensor.encoding.grouped
    assert isinstance(stored, StoredPieces)
    assert isinstance(stored.codec, GptqCodec)
    assert encoding is not None
    plain = replace(stored.codec, zeros="as_is")
    try:
        _, zeros = plain.unpack_groups(arrays, encoding, tensor.columns)
    except InvalidInput as error:
        raise InvalidInput(f"{stored.path}: {stored.name}: {error}") from error
    return zeros


def _with_rule(tensor: Tensor, rule: ZeroRule) -> Tensor:
    stored = tensor.stored
    assert isinstance(stored, StoredPieces)
    assert isinstance(stored.codec, GptqCodec)
    return replace(tensor, stored=replace(stored, codec=replace(stored.codec, zeros=rule)))


def _as_asymmetric(tensor: Tensor) -> Tensor:
    grid = tensor.encoding.grouped
    assert grid is not None
    return replace(tensor, encoding=replace(grid, symmetric=False))


def _spare_biases(folder: Folder, modules: Mapping[str, TensorName]) -> set[str]:
    """Biases of zeros that AutoGPTQ adds to modules which have none."""
    announced = any(folder.config.get(key) for key in _BIAS_KEYS)
    spare = set()
    for module, name in modules.items():
        entry = folder.entries.get(f"{module}.bias")
        has_none = name.module.bias == "none" or (name.module.bias == "optional" and not announced)
        fits = entry is not None and entry.shape == name.shape[:1]
        if entry is not None and fits and has_none and not packed_folder.values_of(entry).any():
            spare.add(entry.name)
    return spare
