"""What a checkpoint is, whatever file it came from.

A reader fills a :class:`Checkpoint` from headers alone; tensor data is read later, slab by slab.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

from zenconvert.base.records import record
from zenconvert.base.stamps import Stamp
from zenconvert.errors import InputWarning
from zenconvert.model.architecture import Architecture
from zenconvert.model.encoding import Encoding
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.pieces import PieceCodec
from zenconvert.model.row_order import RowOrder
from zenconvert.model.tokenizer import Tokenizer

HALVES: Final = (".keys.weight", ".values.weight")
"""What the names of halves end with, of a matrix that makes keys and values."""


@record
class StoredTensor:
    """Where the bytes of a tensor lie in a file, row after row."""

    path: Path
    offset: int
    """Byte offset of the first row from the start of the file."""
    name: str
    """The tensor's name in that file."""
    stride: int | None = None
    """Bytes from one line of a matrix to the next, where rows of ours are columns of the file, or
    rows of other tensors lie in between."""
    turn: tuple[int, int] = (0, 1)
    """Which of how many columns in turn are rows of ours, where these are columns of the file."""


@dataclass(frozen=True, slots=True)
class StoredPieces:
    """Where the arrays of a tensor lie that is stored in several, and who can read them."""

    name: str
    """The module's name in that file."""
    codec: PieceCodec
    encoding: Encoding
    """As the arrays have it; that of the tensor may be narrower, once their numbers are known."""
    pieces: Mapping[str, StoredTensor]
    """Piece name → place; as many as ``codec.pieces`` asks for, in its order."""

    @property
    def path(self) -> Path:
        """The file of the first piece."""
        return next(iter(self.pieces.values())).path


@record
class HeadRows:
    """A matrix whose rows are, head after head, those that make keys and those that make values."""

    heads: int
    keys: int
    """Rows of a head's keys."""
    values: int

    @property
    def band(self) -> int:
        """Rows of a head."""
        return self.keys + self.values


@record
class StoredHalf:
    """The keys or the values of a :class:`HeadRows` matrix by themselves, ``[heads, …]``."""

    whole: Tensor
    heads: HeadRows
    keys: bool
    """Keys, and the matrix of every head is turned: ``[heads, in, keys]``; or values."""

    @property
    def path(self) -> Path:
        """The file of the whole."""
        return self.whole.stored.path

    @property
    def name(self) -> str:
        """The name of the whole in that file."""
        return self.whole.stored.name


@record
class StoredHalves:
    """A :class:`HeadRows` matrix of which a file has keys and values apart, as halves are."""

    keys: Tensor
    values: Tensor
    heads: HeadRows

    @property
    def path(self) -> Path:
        """The file of the keys."""
        return self.keys.stored.path

    @property
    def name(self) -> str:
        """What both are called in the file."""
        return f"{self.keys.stored.name} + {self.values.stored.name}"


@record
class Tensor:
    """One logical tensor: shape and encoding are known without touching its data."""

    name: str
    """Neutral name, e.g. ``layers.3.attn.q.weight``."""
    shape: tuple[int, ...]
    """``[out, in]``, or ``[n]`` for vectors."""
    encoding: Encoding
    stored: StoredTensor | StoredPieces | StoredHalf | StoredHalves
    order: RowOrder | None = None
    """How the stored rows have to be reordered to be the logical ones."""
    change: str | None = None
    """Which of ``operations.CHANGES`` makes logical numbers of the stored ones."""
    origin: Encoding | None = None
    """What a solver made it from; None for a tensor as it was found."""

    @property
    def rows(self) -> int:
        """Rows of the two-dimensional view; a vector is a column of one-element rows."""
        return prod(self.shape[:-1]) if len(self.shape) > 1 else prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements per row."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_half(self) -> bool:
        """Whether it is keys or values alone, which are no weight of a module of the model."""
        return self.name.endswith(HALVES)

    @property
    def source_encoding(self) -> Encoding:
        """What it was before anything was solved."""
        return self.origin or self.encoding

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row."""
        return self.encoding.row_bytes(self.columns)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        if isinstance(self.stored, StoredPieces):
            pieces = self.stored.codec.pieces(self.stored.encoding, self.shape)
            return sum(piece.nbytes for piece in pieces)
        if isinstance(self.stored, StoredHalves):
            return self.stored.keys.nbytes + self.stored.values.nbytes
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of the model beside its tensors and config."""

    label: str = ""
    """Folder name or hub id: what people call this model."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Front matter of the model card."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """``generation_config.json``."""
    carried: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Typed GGUF key/values that came with the model and have no place in a config."""
    predicted_kl: float | None = None
    """The mean divergence, nats per token, by which the types of its tensors were chosen."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened: every fact, no tensor data."""

    path: Path
    format: str
    """Name of the format it was read from (``hf``, ``gguf``, …)."""
    architecture: Architecture
    hyperparameters: Hyperparameters
    config: Mapping[str, Any]
    """Model configuration in the vocabulary of HF's ``config.json``."""
    tensors: Mapping[str, Tensor]
    """Neutral name → tensor, in file order."""
    load_tokenizer: Callable[[], Tokenizer]
    """Reads the tokenizer; cached by :attr:`tokenizer`."""
    metadata: Metadata = field(default_factory=Metadata)
    side_files: Mapping[str, Path] | None = None
    """Small files that travel unchanged to formats with the same folder layout; None where the
    source has no such layout."""
    files: tuple[Path, ...] = ()
    """Every file that holds tensor data."""
    warnings: tuple[str, ...] = ()
    """What is odd about the files, and how it was taken."""
    unexplained: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the files that may change what is computed and that no config can say."""
    beside: tuple[str, ...] = ()
    """What the files hold beside the language model, and nobody here reads."""
    further: int = 0
    """Tensors of the files that are of layers that predict further tokens."""
    predicting: Mapping[str, Tensor] = field(default_factory=dict)
    """Those that folders can keep, by their names there; nobody here computes with them."""
    predicting_said: Mapping[str, Any] = field(default_factory=dict)
    """What a config says of them; ``config`` says that there are none."""
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    """Every file that was read, and the state that it was in."""
    named_config: Path | None = None
    """The ``config.json`` that was named to open files without one."""
    kept: frozenset[str] = frozenset()
    """Weights that a solver could not quantize within its bounds: they stay as they are."""
    solver: str | None = None
    """What found the codes of weights, where it was not rounding."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use; what is odd about it is warned of (InputWarning)."""
        found = self.load_tokenizer()
        for text in found.warnings:
            warnings.warn(InputWarning(text), stacklevel=3)
        return found

    @property
    def is_quantized(self) -> bool:
        """True when any tensor is stored in a quantized encoding."""
        return any(t.encoding.is_quantized for t in self.tensors.values())
