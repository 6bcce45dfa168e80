"""What GPTQ and AWQ folders have in common: modules stored in pieces, among ordinary tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from zenconvert.architecture import TensorName
from zenconvert.checkpoint import Checkpoint, StoredPieces, StoredTensor, Tensor
from zenconvert.encoding import BF16, F16, F32, Dense, Grouped
from zenconvert.errors import CorruptFile, MissingTensor, UsageError
from zenconvert.formats.gguf import integer_grids
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.reader import QUANTIZATION, Folder
from zenconvert.formats.safetensors_container import Entry
from zenconvert.grouped import GroupedCodec
from zenconvert.layout import Choice
from zenconvert.target import Options, Scheme

CODES: Final = ".qweight"
PIECES: Final = (CODES, ".qzeros", ".scales", ".g_idx")
_FLOATS: Final = {"bf16": BF16, "f16": F16, "f32": F32}


def settings_of(path: Path, legacy: str) -> dict[str, Any]:
    """The quantization settings of a folder, {} where it has none.

    They stand in ``config.json``, or in the ``legacy`` file beside it.
    """
    config = path / "config.json"
    if not config.is_file():
        return {}
    settings = read_json(config).get(QUANTIZATION)
    if settings is None and (path / legacy).is_file():
        settings = read_json(path / legacy)
    if settings is not None and not isinstance(settings, dict):
        raise CorruptFile(f"{config}: {QUANTIZATION} should be an object")
    return settings or {}


def modules(folder: Folder) -> dict[str, TensorName]:
    """HF module name → weight, for every module that is stored in pieces."""
    known = {t.hf: t for t in folder.architecture.tensor_names(folder.hyperparameters)}
    found = {}
    for name, entry in folder.entries.items():
        if name.endswith(CODES):
            module = name.removesuffix(CODES)
            if f"{module}.weight" not in known:
                raise CorruptFile(
                    f"{entry.path}: {folder.architecture.id} models have no module {module!r}"
                )
            found[module] = known[f"{module}.weight"]
    return found


def entry_of(folder: Folder, module: str, piece: str) -> Entry:
    """One piece of a module. Raises MissingTensor."""
    name = f"{module}.{piece}"
    if name not in folder.entries:
        raise MissingTensor(f"{folder.path}: {name} is missing beside {module}{CODES}")
    return folder.entries[name]


def packed_tensor(
    folder: Folder, module: str, name: TensorName, encoding: Grouped, codec: GroupedCodec
) -> Tensor:
    """A grouped tensor from its pieces; their dtypes and shapes are checked."""
    places = {}
    for piece in codec.pieces(encoding, name.shape):
        entry = entry_of(folder, module, piece.name)
        if (entry.dtype, entry.shape) != (piece.dtype, piece.shape):
            raise CorruptFile(
                f"{entry.path}: {entry.name} is {entry.dtype} {list(entry.shape)}; {encoding} "
                f"weights {list(name.shape)} call for {piece.dtype} {list(piece.shape)}"
            )
        places[piece.name] = StoredTensor(entry.path, entry.offset, entry.name)
    return Tensor(name.name, name.shape, encoding, StoredPieces(module, codec, encoding, places))


def by_entry(folder: Folder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entry name → the grouped tensor that it is a piece of; keys of ``tensors`` are modules."""
    return {
        module + piece: tensor
        for module, tensor in tensors.items()
        for piece in PIECES
        if module + piece in folder.entries
    }


Grid = Callable[[Scheme], GroupedCodec]
"""The codec that stores tensors of a scheme."""


def choose_modules(
    checkpoint: Checkpoint,
    scheme: Scheme | None,
    codec_for: Grid,
    options: Options,
    parse: Callable[[str], Scheme],
) -> list[Choice]:
    """Every linear weight on a grid, everything else as the source has it.

    ``scheme`` None follows the source's own grids. Raises UsageError for overrides that make no
    sense.
    """
    names = {n.name: n for n in checkpoint.architecture.tensor_names(checkpoint.hyperparameters)}
    choices = []
    for tensor in checkpoint.tensors.values():
        name = names[tensor.name]
        wanted, why = _wanted(tensor, name, scheme, options, parse)
        if tensor.name in checkpoint.kept:
            wanted, why = None, "the solver keeps it at higher precision"
        grid = wanted if isinstance(wanted, Scheme) else None
        choices.append(
            Choice(
                name.hf,
                (tensor,),
                tensor.shape,
                grid_of(wanted) if isinstance(wanted, Scheme) else wanted or _float_of(tensor),
                why=why,
                codec=codec_for(grid) if grid is not None else None,
                scheme=grid,
                is_linear=name.is_weight and name.module.role in {"linear", "router"},
            )
        )
    return choices


def grid_of(scheme: Scheme) -> Grouped:
    """The encoding of tensors quantized by a scheme."""
    return Grouped(scheme.bits, scheme.group, scheme.symmetric, F16, scheme.act_order)


def _wanted(
    tensor: Tensor,
    name: TensorName,
    scheme: Scheme | None,
    options: Options,
    parse: Callable[[str], Scheme],
) -> tuple[Scheme | Dense | None, str]:
    """The grid or float type of one tensor, and what decided it; None leaves it as it is."""
    asked = {"embed": options.embedding_type, "head": options.output_type}.get(name.module.role)
    for pattern, kind in options.tensor_types:
        if re.search(pattern, name.hf):
            return _parsed(kind, parse), f"the name matches {pattern!r}"
    if asked is not None:
        return _parsed(asked, parse), f"{asked} was asked for"
    own = _own_scheme(tensor)
    if name.module.role == "head" and own is not None and scheme is None:
        return own, "the source's own grid"
    if name.module.role != "linear" or not name.is_weight:
        return None, "not quantized in this format"
    if scheme is not None:
        return scheme, "linear weight"
    if own is not None:
        return own, "the source's own grid"
    return parse(""), "linear weight"


def _parsed(kind: str, parse: Callable[[str], Scheme]) -> Scheme | Dense:
    return _FLOATS[kind] if kind in _FLOATS else parse(kind)


def _own_scheme(tensor: Tensor) -> Scheme | None:
    """The scheme of the grid that a tensor is on already."""
    grid = tensor.encoding
    if not isinstance(grid, Grouped | Dense):
        found = integer_grids.GRIDS.get(grid.type)
        if found is None or found.bits not in {2, 3, 4, 8}:
            return None
        grid = found
    if isinstance(grid, Dense):
        return None
    return Scheme(grid.bits, grid.group, grid.symmetric, grid.ordered)


def _float_of(tensor: Tensor) -> Dense:
    """Floats stay as they are; blocks and grids are decoded to f16, which consumers expect."""
    return tensor.encoding if isinstance(tensor.encoding, Dense) else F16


def refuse_foreign(options: Options, *, importance: bool, target: str) -> None:
    """Raise UsageError for options that only mean something to GGUF."""
    del importance  # weights the search for scales
    foreign = {
        "--pure": options.pure,
        "--pre": options.pre_tokenizer is not None,
        "--layout": options.layout is not None,
    }
    if given := [name for name, on in foreign.items() if on]:
        raise UsageError(f"{', '.join(given)} makes no sense for {target} targets")
