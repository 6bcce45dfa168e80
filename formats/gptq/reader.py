"""GPTQ folder → checkpoint: files of AutoGPTQ, GPTQModel, auto-round and our own.

Bits and groups are read off the shapes, which cannot lie; the config says whether zeros are
symmetric, and whether they are stored less one (version 1). Where the zeros of symmetric modules
contradict the label, the data holds: such files exist in the wild.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from zenconvert.architecture import TensorName
from zenconvert.checkpoint import Checkpoint, StoredPieces, Tensor
from zenconvert.encoding import Dense, Grouped
from zenconvert.errors import CorruptFile, InvalidInput, Unsupported
from zenconvert.formats import packed_folder
from zenconvert.formats.gptq.codec import BITS, GptqCodec, ZeroRule
from zenconvert.formats.hf.reader import Folder, name_tensors, open_folder
from zenconvert.formats.safetensors_container import Entry

LEGACY: Final = "quantize_config.json"
_AUTO_ROUND: Final = "auto_round:auto_gptq"
_VERSION_1: Final = "gptq"
_VERSION_2: Final = "gptq_v2"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the config says of every module."""

    symmetric: bool
    act_order: bool
    version: str
    by_word: bool
    """Version 1 zeros were made by subtracting from whole words (GPTQModel)."""

    @property
    def rule(self) -> ZeroRule:
        """How zeros are stored."""
        if self.version == _VERSION_2:
            return "as_is"
        return "plus_one_by_word" if self.by_word else "plus_one"


def detect(path: Path) -> bool:
    """True for an HF folder whose weights are quantized with GPTQ."""
    settings = packed_folder.settings_of(path, LEGACY)
    method = settings.get("quant_method", "gptq" if "desc_act" in settings else None)
    return method == "gptq" or settings.get("packing_format") == _AUTO_ROUND


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GPTQ folder: headers, and the small side tensors that decide what they mean.

    Raises the errors of the HF reader, Unsupported for layouts that cannot be read.
    """
    settings = _settings(path, packed_folder.settings_of(path, LEGACY))
    folder = open_folder(path)
    modules = packed_folder.modules(folder)
    if not modules:
        raise InvalidInput(f"{path}: the config speaks of GPTQ and no weight is quantized")
    tensors = {m: _tensor(folder, m, name, settings) for m, name in modules.items()}
    tensors, warnings = _with_true_zeros(path, tensors, settings)
    spare = _spare_biases(folder, modules)
    folder = replace(folder, entries={k: v for k, v in folder.entries.items() if k not in spare})
    named = name_tensors(folder, packed_folder.by_entry(folder, tensors))
    if spare:
        warnings.append(f"{len(spare)} biases that are all zero, and unknown to the model, go")
    return folder.checkpoint("gptq", named, warnings)


def _settings(path: Path, table: Mapping[str, Any]) -> Settings:
    version = table.get("checkpoint_format", table.get("format", _VERSION_1))
    if version not in {_VERSION_1, _VERSION_2}:
        raise Unsupported(
            f"{path}: the GPTQ layout {version!r} is not read; known are {_VERSION_1} and "
            f"{_VERSION_2}"
        )
    if table.get("pack_dtype", "int32") != "int32":
        raise Unsupported(f"{path}: codes packed as {table['pack_dtype']} are not read; only int32")
    symmetric, act_order = table.get("sym", True), table.get("desc_act", False)
    if not isinstance(symmetric, bool) or not isinstance(act_order, bool):
        raise CorruptFile(f"{path}: sym and desc_act should be true or false")
    return Settings(symmetric, act_order, version, "gptqmodel" in str(table.get("meta", "")))


def _tensor(folder: Folder, module: str, name: TensorName, settings: Settings) -> Tensor:
    codes = packed_folder.entry_of(folder, module, "qweight")
    scales = packed_folder.entry_of(folder, module, "scales")
    _, columns = name.shape
    if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.shape[0] * 32 % columns:
        raise CorruptFile(
            f"{codes.path}: {codes.name} {list(codes.shape)} and scales {list(scales.shape)} do "
            f"not fit a weight {list(name.shape)}"
        )
    bits, groups = codes.shape[0] * 32 // columns, scales.shape[0]
    if bits not in BITS:
        raise Unsupported(f"{codes.path}: {codes.name} has {bits} bits a code; known are {BITS}")
    index = folder.entries.get(f"{module}.g_idx")
    encoding = Grouped(
        bits,
        _group(columns, groups, codes),
        settings.symmetric,
        Dense(scales.dtype),
        ordered=settings.act_order and index is not None and _is_ordered(index, groups),
    )
    codec = GptqCodec(settings.rule, index is not None)
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


def _is_ordered(entry: Entry, groups: int) -> bool:
    """True when the group of a column does not follow from its position."""
    index = _read(entry)
    return not np.array_equal(index, np.arange(len(index)) // -(-len(index) // groups))


def _read(entry: Entry) -> Any:
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.nbytes)
    return np.frombuffer(data, dtype=Dense(entry.dtype).numpy).reshape(entry.shape)


def _with_true_zeros(
    path: Path, tensors: dict[str, Tensor], settings: Settings
) -> tuple[dict[str, Tensor], list[str]]:
    """Look at the zeros of some symmetric modules: do they say what the label says?"""
    if not settings.symmetric:
        return tensors, []
    found = {_stored_midpoint(t) for t in list(tensors.values())[:: max(1, len(tensors) // 4)]}
    label = -1 if settings.version == _VERSION_1 else 0
    if found == {label}:
        return tensors, []
    if found == {-1 - label}:
        actual: ZeroRule = "plus_one" if label == 0 else "as_is"
        version = _VERSION_1 if label == 0 else _VERSION_2
        warning = f"labelled {settings.version}, and its zeros are those of {version}: read as that"
        return {m: _with_rule(t, actual) for m, t in tensors.items()}, [f"{path}: {warning}"]
    asymmetric = {m: _as_asymmetric(t) for m, t in tensors.items()}
    return asymmetric, [f"{path}: labelled symmetric, and its zeros are not all the same"]


def _stored_midpoint(tensor: Tensor) -> int | None:
    """What was added to the midpoint where every stored zero is that; None where they differ."""
    stored, encoding = tensor.stored, tensor.encoding
    assert isinstance(stored, StoredPieces)
    assert isinstance(encoding, Grouped)
    place = stored.pieces["qzeros"]
    piece = next(p for p in stored.codec.pieces(encoding, tensor.shape) if p.name == "qzeros")
    entry = Entry(place.name, "i32", piece.shape, place.path, place.offset, piece.nbytes)
    arrays = {"qzeros": _read(entry), "scales": np.zeros((piece.shape[0], tensor.rows), np.float16)}
    _, zeros = GptqCodec("as_is").unpack_groups(arrays, encoding, tensor.columns)
    offset = int(zeros.flat[0]) - (1 << (encoding.bits - 1))
    return offset if bool((zeros == zeros.flat[0]).all()) else None


def _with_rule(tensor: Tensor, rule: ZeroRule) -> Tensor:
    stored = tensor.stored
    assert isinstance(stored, StoredPieces)
    assert isinstance(stored.codec, GptqCodec)
    return replace(tensor, stored=replace(stored, codec=replace(stored.codec, zeros=rule)))


def _as_asymmetric(tensor: Tensor) -> Tensor:
    assert isinstance(tensor.encoding, Grouped)
    return replace(tensor, encoding=replace(tensor.encoding, symmetric=False))


def _spare_biases(folder: Folder, modules: Mapping[str, TensorName]) -> set[str]:
    """Biases of zeros that AutoGPTQ adds to modules which have none."""
    spare = set()
    for module, name in modules.items():
        entry = folder.entries.get(f"{module}.bias")
        if entry is not None and name.module.bias == "none" and not _read(entry).any():
            spare.add(entry.name)
    return spare
