"""What GPTQ and AWQ folders have in common: modules stored in pieces, among ordinary tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import (
    CorruptFile,
    MissingTensor,
    Unsupported,
    UsageError,
    first_names,
)
from zenconvert.formats.hf.further import choices_of
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import foreign
from zenconvert.formats.hf.writer import in_files, zero_biases
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, StoredPieces, StoredTensor, Tensor
from zenconvert.model.encoding import BF16, F16, F32, Dense, Encoding, Grouped
from zenconvert.model.grouped import GroupedCodec
from zenconvert.model.layout import Choice
from zenconvert.model.pieces import ROW_UNIT, PieceCodec
from zenconvert.model.target import Options, Scheme
from zenconvert.model.tensor_names import in_rows, joined_shape

CODES: Final = ".qweight"
PIECES: Final = (CODES, ".qzeros", ".scales", ".g_idx")
_BLOCK: Final = re.compile(r"(?:[A-Za-z_]\w*\.)*\d+\.")
ReadAt = Callable[[Path, int, int], bytes]
"""``(file, offset, bytes)`` → what stands there."""
_FLOATS: Final = {"bf16": BF16, "f16": F16, "f32": F32}


def weights(folder: Folder) -> dict[str, TensorName]:
    """HF name → tensor; of one that holds the rows of several, the first of these with the shape of
    the whole."""
    names = folder.architecture.tensor_names(folder.hyperparameters)
    known = {t.hf: t for t in names}
    for stored, parts in in_rows(names).items():
        known[stored] = replace(parts[0], shape=joined_shape(parts))
    return known


def modules(folder: Folder) -> dict[str, TensorName]:
    """HF module name → weight, as :func:`weights` has it, of every module in pieces."""
    known = weights(folder)
    packed = [name.removesuffix(CODES) for name in folder.entries if name.endswith(CODES)]
    if unknown := [module for module in packed if f"{module}.weight" not in known]:
        raise foreign(
            str(folder.path),
            folder.architecture.id,
            folder.hyperparameters.layers,
            [module + CODES for module in unknown],
        )
    return {module: known[f"{module}.weight"] for module in packed}


def entry_of(folder: Folder, module: str, piece: str) -> Entry:
    """One piece of a module. Raises MissingTensor."""
    name = f"{module}.{piece}"
    if name not in folder.entries:
        raise MissingTensor(f"{folder.path}: {name} is missing beside {module}{CODES}")
    return folder.entries[name]


def scales_of(folder: Folder, module: str) -> Entry:
    """The scales of a module. Raises MissingTensor, or CorruptFile where they are no floats."""
    entry = entry_of(folder, module, "scales")
    if entry.dtype not in {"f16", "bf16", "f32"}:
        raise CorruptFile(f"{entry.path}: {entry.name}: scales are {entry.dtype}, and no floats")
    return entry


def packed_tensor(
    folder: Folder, module: str, name: TensorName, encoding: Encoding, codec: PieceCodec
) -> Tensor:
    """A tensor from its pieces; their dtypes and shapes are checked."""
    return of_pieces(module, name, encoding, codec, partial(entry_of, folder, module))


def of_pieces(
    module: str,
    name: TensorName,
    encoding: Encoding,
    codec: PieceCodec,
    entry_for: Callable[[str], Entry],
) -> Tensor:
    """A tensor from the entry of every piece. Raises CorruptFile where one does not fit."""
    places = {}
    for piece in codec.pieces(encoding, name.shape):
        entry = entry_for(piece.name)
        if (entry.dtype, entry.shape or (1,)) != (piece.dtype, piece.shape):
            raise CorruptFile(
                f"{entry.path}: {entry.name} is {entry.dtype} {list(entry.shape)}; {encoding} "
                f"weights {list(name.shape)} call for {piece.dtype} {list(piece.shape)}"
            )
        places[piece.name] = StoredTensor(entry.path, entry.offset, entry.name)
    return Tensor(name.name, name.shape, encoding, StoredPieces(module, codec, encoding, places))


def among(names: Collection[str], modules: Collection[str]) -> str:
    """`` in 2 of 28 modules (a, b)``; nothing where it is all of them."""
    if len(names) == len(modules):
        return ""
    return f" in {len(names)} of {len(modules)} modules{named(names, modules)}"


def named(names: Collection[str], modules: Collection[str]) -> str:
    """`` (a, b)``, or the first of many; nothing where it is all modules."""
    return "" if len(names) == len(modules) else f" ({first_names(sorted(names))})"


def values_of(entry: Entry) -> NDArray[Any]:
    """The whole data of a small array."""
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.nbytes)
    return np.frombuffer(data, dtype=Dense(entry.dtype).numpy).reshape(entry.shape)


@contextmanager
def reading() -> Iterator[ReadAt]:
    """A function that reads small pieces of many arrays: a file that is asked of again is open."""
    path = Path()
    file: FileIO | None = None

    def read(of: Path, offset: int, nbytes: int) -> bytes:
        nonlocal path, file
        if file is None or path != of:
            if file is not None:
                file.close()
            path, file = of, of.open("rb", buffering=0)
        return os.pread(file.fileno(), nbytes, offset)

    try:
        yield read
    finally:
        if file is not None:
            file.close()


def by_entry(folder: Folder, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Entry name → the grouped tensors that it is a piece of; keys of ``tensors`` are modules.

    Raises Unsupported for rows of several modules that do not begin at whole words.
    """
    parts = cut_apart(folder, tensors)
    return {
        module + piece: parts[module]
        for module in tensors
        for piece in PIECES
        if module + piece in folder.entries
    }


def cut_apart(folder: Folder, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The tensors under their keys; where one holds the rows of several, these in its place.

    Raises Unsupported for rows that do not begin at whole words or blocks.
    """
    names = folder.architecture.tensor_names(folder.hyperparameters)
    joined = {parts[0].name: parts for parts in in_rows(names).values()}
    return {
        key: tuple(_rows(tensor, joined[tensor.name]))
        if tensor.name in joined and tensor.shape == joined_shape(joined[tensor.name])
        else (tensor,)
        for key, tensor in tensors.items()
    }


def _rows(whole: Tensor, names: Sequence[TensorName]) -> Iterator[Tensor]:
    """The grouped tensors whose rows another one holds, one after the other."""
    stored, begin = whole.stored, 0
    assert isinstance(stored, StoredPieces)
    for name in names:
        end = begin + name.shape[0]
        places = {}
        for piece in stored.codec.pieces(stored.encoding, whole.shape):
            if begin % (unit := piece.rows or ROW_UNIT):
                raise Unsupported(
                    f"{stored.path}: {stored.name} holds the rows of several modules, and those of "
                    f"{name.hf} do not begin at a multiple of {unit}"
                )
            place, line = stored.pieces[piece.name], piece.nbytes // piece.shape[0]
            offset = place.offset + next(piece.extents(begin, end))[0]
            if piece.axis == 1:
                place = replace(place, offset=offset, stride=line)
            elif piece.axis == 0:
                place = replace(place, offset=offset)
            places[piece.name] = place
        yield replace(
            whole, name=name.name, shape=name.shape, stored=replace(stored, pieces=places)
        )
        begin = end


def in_blocks(wanted: Sequence[str], others: Sequence[str]) -> list[str]:
    """Names that pick ``wanted`` modules of decoder blocks and none of ``others``.

    Short ones without the block where that does, as older consumers know no others.
    """
    found: dict[str, None] = {}
    clear: dict[str, bool] = {}
    for name in wanted:
        block = _BLOCK.match(name)
        if block is not None:
            short = name.removeprefix(block[0])
            if short not in clear:  # every block has it
                clear[short] = not any(short in other for other in others)
            found[short if clear[short] else name] = None
    return list(found)


RUNTIME_NAMES: Final = "gptqmodel"
"""Suffix of targets whose modules are called as GPTQModel 7 wants them."""

Grid = Callable[[Scheme], GroupedCodec]
"""The codec that stores tensors of a scheme."""


def choose_modules(
    checkpoint: Checkpoint,
    scheme: Scheme | None,
    codec_for: Grid,
    options: Options,
    parse: Callable[[str], Scheme],
    *,
    head: bool,
    runtime_names: bool,
) -> list[Choice]:
    """Every linear weight on a grid, everything else as the source has it.

    ``scheme`` None follows the source's own grids; ``head`` says whether consumers of the format
    take a quantized output head; ``runtime_names`` calls modules what transformers calls them in
    memory, where that differs. Raises UsageError for overrides that make no sense.
    """
    _refuse_grids(options, head=head)
    own = _own_schemes(checkpoint) if scheme is None else {}
    rules = _Rules(scheme, options, parse, head, own)
    choices = []
    for stored, names, parts in in_files(checkpoint, stacked=False):
        tensor, name = parts[0], names[0]
        if name.hf != stored:
            name = replace(name, hf=stored)
        if runtime_names and name.hf_also is not None:
            name = replace(name, hf=name.hf_also)
        wanted, why = rules.wanted(tensor, name)
        if checkpoint.kept and any(part.name in checkpoint.kept for part in parts):
            wanted, why = None, "the solver keeps it at higher precision"
        grid = wanted if isinstance(wanted, Scheme) else None
        choices.append(
            Choice(
                name.hf,
                parts,
                joined_shape(names),
                grid_of(wanted) if isinstance(wanted, Scheme) else wanted or _float_of(tensor),
                why=why,
                codec=codec_for(grid) if grid is not None else None,
                scheme=grid,
                is_linear=name.is_weight and name.module.role in {"linear", "router"},
            )
        )
    choices += zero_biases(checkpoint, _bias_float(choices))
    return [*choices, *choices_of(checkpoint)]


def _bias_float(choices: Sequence[Choice]) -> Dense:
    """The float type of the biases that are there."""
    found = (c.encoding for c in choices if c.name.endswith(".bias"))
    return next((e.dense for e in found if e.dense is not None), F16)


@lru_cache(maxsize=256)
def grid_of(scheme: Scheme) -> Grouped:
    """The encoding of tensors quantized by a scheme."""
    return Grouped(scheme.bits, scheme.group, scheme.symmetric, F16, scheme.act_order)


@dataclass(frozen=True, slots=True)
class _Rules:
    """What decides how a tensor is stored."""

    scheme: Scheme | None
    options: Options
    parse: Callable[[str], Scheme]
    head: bool
    own: Mapping[str, Scheme]
    """Grids of the source, by tensor, where it is followed; what it has in floats stays so."""
    found: dict[tuple[str, bool], tuple[Scheme | Dense | None, str]] = field(default_factory=dict)
    """What tensors of a role become, where nothing else decides."""

    def wanted(self, tensor: Tensor, name: TensorName) -> tuple[Scheme | Dense | None, str]:
        """The grid or float type of a tensor, and why; None leaves it as it is."""
        if self.own or self.options.tensor_types:
            return self._looked_at(tensor, name)
        key = (name.module.role, name.is_weight)
        if key not in self.found:
            self.found[key] = self._looked_at(tensor, name)
        return self.found[key]

    def _looked_at(self, tensor: Tensor, name: TensorName) -> tuple[Scheme | Dense | None, str]:
        role, own, options = name.module.role, self.own.get(tensor.name), self.options
        on_grid = name.is_weight and (role == "linear" or (role == "head" and self.head))
        for pattern, kind in options.tensor_types:
            if re.search(pattern, name.hf) and (on_grid or kind in _FLOATS):
                return self._parsed(kind), f"the name matches {pattern!r}"
        asked = {"embed": options.embedding_type, "head": options.output_type}.get(role)
        if asked is not None:
            return self._parsed(asked), f"{asked} was asked for"
        if not on_grid or (role == "head" and (own is None or self.scheme is not None)):
            return None, "not quantized in this format"
        if self.scheme is not None:
            return self.scheme, "linear weight"
        if own is not None:
            return own, "the source's own grid"
        if self.own and not tensor.encoding.is_quantized:
            return None, "the source keeps it in floats"
        return self.parse(""), "linear weight"

    def _parsed(self, kind: str) -> Scheme | Dense:
        return _FLOATS[kind] if kind in _FLOATS else self.parse(kind)


def _refuse_grids(options: Options, *, head: bool) -> None:
    """Raise UsageError for a grid where consumers of the format look for floats."""
    given = {"--embedding-type": options.embedding_type}
    if not head:
        given["--output-type"] = options.output_type
    for option, kind in given.items():
        if kind is not None and kind not in _FLOATS:
            known = ", ".join(_FLOATS)
            raise UsageError(f"{option} {kind} makes no sense in this format; choose from {known}")


def _own_schemes(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """The schemes of tensors that are on a grid already.

    One group a row, as long as the groups of others are, is what these have.
    """
    found = {t.name: own for t in checkpoint.tensors.values() if (own := _own_scheme(t))}
    others = set(found.values())
    for name, own in found.items():
        same = replace(own, group=checkpoint.tensors[name].columns)
        if own.group is None and same in others:
            found[name] = same
    return found


def _own_scheme(tensor: Tensor) -> Scheme | None:
    """The scheme of the grid that a tensor is on already."""
    encoding = tensor.encoding
    grid = encoding.grid()
    if grid is None:
        return None
    if encoding.grouped is None and (grid.offset is not None or encoding.takes(grid) != grid):
        return None  # it could not become one again
    return Scheme(grid.bits, grid.group, grid.symmetric, grid.ordered)


def _float_of(tensor: Tensor) -> Dense:
    """Floats stay as they are; blocks and grids are decoded to f16, which consumers expect."""
    return tensor.encoding.floats


def refuse_foreign(options: Options, *, importance: bool, target: str) -> None:
    """Raise UsageError for options that only mean something to GGUF."""
    del importance  # weights the search for scales
    foreign = {
        "--pure": options.pure,
        "--layout": options.layout is not None,
    }
    if given := [name for name, on in foreign.items() if on]:
        raise UsageError(f"{', '.join(given)} makes no sense for {target} targets")
