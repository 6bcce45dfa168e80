"""Where everything stands in a statistics file, known before anything is computed.

The file is in the safetensors format: u64 header length, JSON header, data. Per distinct input of a
linear module (named by the first module that reads it; ``inputs`` in the metadata has the others)::

    NAME.tokens       I64 [languages]            rows that each language brought
    NAME.squares      F32 [languages, columns]   Σ x²
    NAME.magnitudes   F32 [languages, columns]   Σ |x|
    NAME.moments      F32 [columns·(columns+1)/2]  Σ c·x·xᵀ over all languages, if asked for: the
                                                 upper triangle, row after row
    layers.N.moe.routed  I64 [languages, experts]  tokens that the router sent to each expert

Of a walk back (``--fisher``), with what stands in :mod:`zenconvert.calib.gradients`; the metadata
``fisher`` say of which tokens, per language, and how labels were drawn::

    NAME.gradients     F32 [languages, outputs]   Σ g², for every linear module and ``head``
    fisher.embed       F32 [hidden·(hidden+1)/2]  Σ c·g·gᵀ at the rows of the embedding
    fisher.rows        F32 [vocabulary]           Σ c·|g|² over the tokens of each id
    fisher.head        F32 [hidden·(hidden+1)/2]  Σ c·|g|²·x·xᵀ, where the head is tied to them
    STEP.dropped       I64 [languages]            tokens without finite gradients; STEP is
                                                  ``head``, ``layers.N`` or ``embed``

On request, also ``states`` [tokens, hidden], the final hidden states of all windows, with the
``windows.ids`` I32 [tokens], ``windows.lengths`` and ``windows.languages`` I32 [windows].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.reference.inputs import Input

FORMAT: Final = "zenconvert-statistics"
VERSION: Final = "1"

_ITEM: Final = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}
STATE_TYPES: Final = {"f32": "F32", "bf16": "BF16", "f16": "F16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return _ITEM[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class StatisticsLayout:
    """The header, and the place of every tensor."""

    header: bytes
    offsets: Mapping[str, int]
    """Name → offset from the start of the file."""
    size: int
    """Bytes of the file."""


def lay_out(entries: Sequence[Entry], metadata: Mapping[str, str]) -> StatisticsLayout:
    """Place tensors; those of the widest type first, so that all of them are aligned."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    at = 0
    for entry in sorted(entries, key=lambda e: -_ITEM[e.dtype]):
        end = at + entry.nbytes
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, end],
        }
        begins[entry.name], at = at, end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + begin for name, begin in begins.items()}
    return StatisticsLayout(header, offsets, len(header) + at)


def input_entries(item: Input, languages: int, *, moments: bool) -> Iterator[Entry]:
    """The tensors of one input."""
    yield Entry(f"{item.name}.tokens", "I64", (languages,))
    yield Entry(f"{item.name}.squares", "F32", (languages, item.columns))
    yield Entry(f"{item.name}.magnitudes", "F32", (languages, item.columns))
    if moments and item.solved:
        packed = item.columns * (item.columns + 1) // 2
        yield Entry(f"{item.name}.moments", "F32", (packed,))


def gradient_entries(
    step: str,
    outputs: Mapping[str, int],
    languages: int,
    hidden: int | None,
    vocabulary: int | None,
) -> Iterator[Entry]:
    """The tensors of one step of a walk back: of modules with so many outputs; ``hidden`` where it
    brings moments of rows, and ``vocabulary`` where it tells tokens apart."""
    for module, rows in outputs.items():
        yield Entry(f"{module}.gradients", "F32", (languages, rows))
    if hidden is not None:
        yield Entry(f"fisher.{step}", "F32", (hidden * (hidden + 1) // 2,))
    if vocabulary is not None:
        yield Entry("fisher.rows", "F32", (vocabulary,))
    yield Entry(f"{step}.dropped", "I64", (languages,))


def routed_entry(layer: int, languages: int, experts: int) -> Entry:
    """Tokens routed to the experts of a layer."""
    return Entry(f"layers.{layer}.moe.routed", "I64", (languages, experts))


def state_entries(tokens: int, windows: int, hidden: int, dtype: str) -> Iterator[Entry]:
    """The final hidden states, in ``dtype`` (f32, bf16 or f16)."""
    yield Entry("states", STATE_TYPES[dtype], (tokens, hidden))
    yield Entry("windows.ids", "I32", (tokens,))
    yield Entry("windows.lengths", "I32", (windows,))
    yield Entry("windows.languages", "I32", (windows,))


def packed_row(row: int, columns: int) -> int:
    """Where a row of the upper triangle begins among the packed numbers."""
    return row * columns - row * (row - 1) // 2


def unpack(packed: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """The whole symmetric matrix, float32[columns, columns], of a packed upper triangle."""
    full = np.empty((columns, columns), dtype=np.float32)
    for row in range(columns):
        begin = packed_row(row, columns)
        full[row, row:] = packed[begin : begin + columns - row]
        full[row:, row] = full[row, row:]
    return full
