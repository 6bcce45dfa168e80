"""Solved layers on the disk, between the solver and the writer.

A solver that needs a whole layer's statistics works layer by layer; which modules it could quantize
within their bounds, and so where every byte of the output goes, is known only at its end. So each
layer is kept in a file of its own as soon as it is solved: a killed run goes on after the last one,
and the finished set lies over the source as a checkpoint that any format can be written from.

``layer-00012.safetensors`` (``head.safetensors`` for the output head, ``embed.safetensors`` for the
embedding) holds the pieces of every
grouped weight, packed as GPTQ version 2 does (which can hold any grid of ours), the rows of those
that an encoding of its own stores, and the other tensors that the solver changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.atomic import new_file
from zenconvert.base.scratch import is_kept, keep
from zenconvert.calib.solvers.solution import EncodedRows, Filled, ModuleReport, Solved
from zenconvert.errors import CorruptFile
from zenconvert.formats import safetensors_container
from zenconvert.formats.gptq.codec import GptqCodec
from zenconvert.formats.safetensors_container import SafetensorsFile
from zenconvert.ggml.encoding import encoding_named
from zenconvert.model.checkpoint import Checkpoint, StoredPieces, StoredTensor, Tensor
from zenconvert.model.encoding import DENSE, DENSE_DTYPES, Dense, Grouped

_CODEC: Final = GptqCodec("as_is")
_FACTS: Final = "solved"
_ROWS: Final = "rows"

Part = int | str | None
"""The number of a layer, None for the output head, or ``embed``."""


@dataclass(frozen=True)
class LayerSolution:
    """What a solver made of one layer."""

    quantized: Mapping[str, Solved | Filled] = field(default_factory=dict)
    """Neutral weight name → codes and report."""
    changed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Neutral name → values in the logical shape and the source's dtype, of other tensors."""

    def __or__(self, other: LayerSolution) -> LayerSolution:
        """Both together."""
        return LayerSolution(
            {**self.quantized, **other.quantized}, {**self.changed, **other.changed}
        )


class SolvedStore:
    """The solved layers of one conversion in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, layer: Part) -> bool:
        """Whether a part is solved and on the disk as it was written."""
        return is_kept(self._path(layer))

    def put(self, layer: Part, solution: LayerSolution) -> None:
        """Keep a layer. Raises as ``new_file``."""
        arrays: list[tuple[str, Dense, NDArray[Any]]] = []
        facts: dict[str, Any] = {}
        with ThreadPoolExecutor() as pool:  # codes by the hundred million: NumPy lets others run
            packed = list(pool.map(_packed, solution.quantized.values()))
        for (name, solved), parts in zip(solution.quantized.items(), packed, strict=True):
            facts[name] = {"report": solved.report.as_dict()}
            if parts is not None:
                grid, pieces = parts
                facts[name]["grid"] = grid
                arrays += [(f"{name}.{part}", dtype, array) for part, dtype, array in pieces]
        arrays += [(name, _dense(values), values) for name, values in solution.changed.items()]
        entries = [(name, dtype, array.shape) for name, dtype, array in arrays]
        header, _ = safetensors_container.pack_header(entries, {_FACTS: json.dumps(facts)})
        with new_file(self._path(layer)) as file:
            file.write(header)
            for _, dtype, array in arrays:
                file.write(np.ascontiguousarray(array, dtype=dtype.numpy).view(np.uint8).data)
        keep(self._path(layer))

    def reports(self, layers: Iterable[Part]) -> dict[str, ModuleReport]:
        """Neutral weight name → how it was quantized, layer by layer."""
        return {
            name: ModuleReport(**{**fact["report"], "notes": tuple(fact["report"]["notes"])})
            for layer in layers
            for name, fact in _facts(self._read(layer)).items()
        }

    def over(self, checkpoint: Checkpoint, layers: Iterable[Part]) -> Checkpoint:
        """The checkpoint with the solved tensors in place of its own."""
        tensors, kept, files = dict(checkpoint.tensors), set(), list(checkpoint.files)
        methods: set[str] = set()
        for layer in layers:
            file = self._read(layer)
            files.append(file.path)
            facts = _facts(file)
            methods |= {fact["report"]["method"] for fact in facts.values()}
            for name, fact in facts.items():
                if "grid" in fact:
                    tensors[name] = _quantized(file, tensors[name], fact["grid"])
                else:
                    kept.add(name)
            for name, entry in file.tensors.items():
                if name in tensors:
                    stored = StoredTensor(entry.path, entry.offset, tensors[name].stored.name)
                    tensors[name] = Tensor(name, entry.shape, Dense(entry.dtype), stored)
        solver = "+".join(sorted(methods - {"rtn", "keep"}, reverse=True)) or None
        return replace(
            checkpoint, tensors=tensors, kept=frozenset(kept), files=tuple(files), solver=solver
        )

    def _path(self, layer: Part) -> Path:
        name = f"layer-{layer:05d}" if isinstance(layer, int) else layer or "head"
        return self.folder / f"{name}.safetensors"

    def _read(self, layer: Part) -> SafetensorsFile:
        return safetensors_container.read(self._path(layer))


def _packed(solved: Solved | Filled) -> tuple[Any, list[tuple[str, Dense, NDArray[Any]]]] | None:
    """What says how a weight is quantized, and its pieces; None where it stays in floats."""
    values = solved.values
    if values is None:
        return None
    if isinstance(values, EncodedRows):
        return str(values.encoding), [(_ROWS, DENSE["u8"], values.data)]
    rows = replace(values, scales=values.scales.astype(np.float16))
    grid, arrays = rows.encoding, _CODEC.pack(rows)
    pieces = _CODEC.pieces(grid, rows.codes.shape)
    found = [(p.name, Dense(p.dtype), np.ascontiguousarray(arrays[p.name])) for p in pieces]
    return [grid.bits, grid.group, grid.symmetric, grid.ordered], found


def _dense(values: NDArray[Any]) -> Dense:
    return Dense(next(name for name, dtype in DENSE_DTYPES.items() if dtype == values.dtype))


def _facts(file: SafetensorsFile) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(file.metadata[_FACTS])
    except (KeyError, ValueError) as error:
        raise CorruptFile(f"{file.path}: no file of a solved layer; remove it") from error
    return facts


def _quantized(file: SafetensorsFile, source: Tensor, grid: str | list[Any]) -> Tensor:
    if isinstance(grid, str):
        entry = file.tensors[f"{source.name}.{_ROWS}"]
        stored = StoredTensor(file.path, entry.offset, source.stored.name)
        encoding, origin = encoding_named(grid), source.source_encoding
        return Tensor(source.name, source.shape, encoding, stored, origin=origin)
    bits, group, symmetric, ordered = grid
    encoding = Grouped(bits, group, symmetric, ordered=ordered)
    pieces = {
        piece.name: StoredTensor(file.path, entry.offset, entry.name)
        for piece in _CODEC.pieces(encoding, source.shape)
        for entry in [file.tensors[f"{source.name}.{piece.name}"]]
    }
    return Tensor(
        source.name,
        source.shape,
        encoding,
        StoredPieces(source.stored.name, _CODEC, encoding, pieces),
        origin=source.source_encoding,
    )
