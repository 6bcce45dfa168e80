"""How the numbers of one tensor are stored: the neutral encodings that every format maps to.

* :class:`Dense` is one number per element (``f32``, ``f16``, ``bf16``, …).
* :class:`Grouped` is small integers with a scale per group of columns (GPTQ, AWQ, MatMulNBits).
* :class:`zenconvert.ggml.encoding.Blocks` is ggml block bytes as stored in GGUF (``q4_k``, …).

An encoding is known from headers alone. Data travels in row slabs: ``Dense`` as an array
``[rows, columns]`` of its dtype, ``Grouped`` as :class:`zenconvert.model.grouped.GroupedRows`, any
other as ``uint8[rows, row_bytes]``. One that is only read is a class with ``row_bytes`` and
``decode``; where its numbers lie on a grid, ``grid`` and ``on_grid`` let them be repacked.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from zenconvert.base.arrays import Array, reinterpreted
from zenconvert.errors import UnsupportedEncoding
from zenconvert.model.nested import NestedGrid, NestedRows

DENSE_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8_e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}

# Every value of the key is a value of each dtype in the set.
_WIDENS_TO: Final[dict[str, frozenset[str]]] = {
    "f32": frozenset({"f32", "f64"}),
    "f16": frozenset({"f16", "f32", "f64"}),
    "bf16": frozenset({"bf16", "f32", "f64"}),
    "f8_e4m3": frozenset({"f8_e4m3", "f16", "bf16", "f32", "f64"}),
    "f8_e5m2": frozenset({"f8_e5m2", "f16", "bf16", "f32", "f64"}),
}
_NUMBER: Final = re.compile(r"\d+")


class Encoding(ABC):
    """One way to store numbers. Equal ones store them in the same bytes."""

    __slots__ = ()

    @abstractmethod
    def row_bytes(self, columns: int) -> int:
        """Stored bytes of one row of ``columns`` elements."""

    @abstractmethod
    def decode(self, rows: Any, columns: int) -> Array:
        """Stored rows as numbers ``[n, columns]``: float32, or the dtype that they are in.

        Rows are arrays of numpy, or of torch on any device: the numbers are the same bit for bit,
        and lie where the rows do.
        """

    def grid(self) -> Grouped | None:
        """The grid of integers that the numbers lie on, None where they lie on none."""
        return None

    def on_grid(self, rows: Any, columns: int) -> Any:
        """Stored rows as :class:`~zenconvert.model.grouped.GroupedRows` of :meth:`grid`, bit for
        bit."""
        raise NotImplementedError(f"{self} is no grid")

    def takes(self, grid: Grouped) -> Grouped | None:
        """The grid that :meth:`of_grid` stores where there is ``grid``; None where it has none."""
        return None

    def of_grid(self, rows: Any) -> Any:
        """Grouped rows on a grid that :meth:`takes` gave, as they are stored."""
        raise NotImplementedError(f"{self} is no grid")

    def rounds_minimum(self, grid: Grouped) -> bool:
        """Whether :meth:`of_grid` turns the zeros of ``grid`` into a minimum, which rounds them."""
        return False

    def nested_grid(self) -> NestedGrid | None:
        """The grid whose scales are quantized themselves, None where there is none."""
        return None

    def on_nested(self, rows: Any, columns: int) -> NestedRows:
        """Stored rows ``u8[n, row_bytes]`` on :meth:`nested_grid`, bit for bit, where they lie."""
        raise NotImplementedError(f"{self} is no nested grid")

    def of_nested(self, rows: NestedRows) -> Any:
        """Rows on :meth:`nested_grid` as they are stored."""
        raise NotImplementedError(f"{self} is no nested grid")

    def encodes_on(self, device: str) -> bool:
        """Whether :meth:`encode` takes tensors that lie on devices of a type of torch's."""
        return False

    def encode(self, values: Any, importance: Any) -> Any:
        """float32[n, columns] rounded to it, ``importance`` f32[columns] or None.

        The bytes are the same, and lie where the numbers do: on the host, and on devices where
        :meth:`encodes_on` says so. Raises InvalidInput.
        """
        raise NotImplementedError(f"{self} cannot be written")

    def rows_of(self, data: Array, columns: int) -> Array:
        """Bytes ``u8[n, row_bytes]`` as rows travel."""
        return data

    def widens_to(self, other: Dense) -> bool:
        """True when every number is exactly one of ``other``; all are ones of float32."""
        return other.dtype in {"f32", "f64"}

    def narrowed(self, arrays: Mapping[str, Any]) -> Encoding:
        """The encoding with what small arrays beside the codes say of it, by name of the piece.

        Raises CorruptFile for impossible ones.
        """
        return self

    @property
    def band(self) -> int:
        """Rows that are encoded and stored together."""
        return 1

    @property
    def can_be_written(self) -> bool:
        """Whether there is an encoder, too."""
        return False

    @property
    def uses_importance(self) -> bool:
        """Whether importance weights change what rounding to it gives."""
        return False

    @property
    def dense(self) -> Dense | None:
        """Itself where it stores one number per element, None where it does not."""
        return None

    @property
    def grouped(self) -> Grouped | None:
        """Itself where it stores codes with a scale per group, None where it does not."""
        return None

    @property
    def is_quantized(self) -> bool:
        """Whether rounding from it is rounding for the second time."""
        return self.dense is None

    @property
    def floats(self) -> Dense:
        """What its numbers are stored in where consumers look for floats."""
        return F16

    @property
    def nominal_bits(self) -> int:
        """Bits of a number, without what its scales add; 0 where the name says none."""
        found = _NUMBER.search(str(self))
        return int(found[0]) if found else 0

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the compiled kernels that encode it."""
        return ()


@dataclass(frozen=True, slots=True)
class Dense(Encoding):
    """One number per element."""

    dtype: str

    def __str__(self) -> str:
        return self.dtype

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype (``ml_dtypes`` for bf16 and f8). Raises UnsupportedEncoding."""
        try:
            return DENSE_DTYPES[self.dtype]
        except KeyError:
            raise UnsupportedEncoding(
                f"no such dense dtype: {self.dtype!r}; known are {', '.join(DENSE_DTYPES)}"
            ) from None

    def widens_to(self, other: Dense) -> bool:
        """True when every value of this dtype is exactly a value of ``other``."""
        return self.dtype == other.dtype or other.dtype in _WIDENS_TO.get(self.dtype, frozenset())

    def row_bytes(self, columns: int) -> int:
        """Stored bytes of one row of ``columns`` elements."""
        return columns * self.numpy.itemsize

    def decode(self, rows: Array, columns: int) -> Array:
        """The rows as they are, in this dtype."""
        return rows

    def rows_of(self, data: Array, columns: int) -> Array:
        """Bytes as numbers ``[n, columns]`` of the dtype."""
        return reinterpreted(data, self.numpy).reshape(len(data), columns)

    @property
    def can_be_written(self) -> bool:
        """Whatever numpy has a dtype for."""
        return True

    @property
    def dense(self) -> Dense:
        """Itself."""
        return self

    @property
    def floats(self) -> Dense:
        """Floats stay as they are."""
        return self

    @property
    def nominal_bits(self) -> int:
        """Bits of the dtype."""
        return 8 * self.numpy.itemsize


@dataclass(frozen=True, slots=True)
class Grouped(Encoding):
    """``w[o, i] = (code[o, i] - zero[o, g(i)]) * scale[o, g(i)]`` with unsigned integer codes.

    With an ``offset`` there is no zero: ``w = code * scale + offset``.
    """

    bits: int
    group: int | None
    """Columns per group; None for one group a row. The last group of a row may be shorter."""
    symmetric: bool
    """Every zero is the midpoint ``2 ** (bits - 1)``; else zeros are integers of their own."""
    scale: Dense = Dense("f16")
    ordered: bool = False
    """The group of a column is given by an index (act-order), not by its position."""
    offset: Dense | None = None
    """A float minimum for every group in the place of a zero; such a grid is not symmetric."""

    def __hash__(self) -> int:
        return hash((self.bits, self.group, self.symmetric))  # of the few that a model has

    def __str__(self) -> str:
        group = -1 if self.group is None else self.group
        kind = "-min" if self.offset is not None else "" if self.symmetric else "-asym"
        return f"w{self.bits}g{group}{kind}{'-actorder' if self.ordered else ''}"

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns``."""
        return 1 if self.group is None else -(-columns // self.group)

    def row_bytes(self, columns: int) -> int:
        """Bytes of the codes, scales and zeros of one row, rounded up; files add padding to it."""
        zero = 0 if self.symmetric else self.bits
        if self.offset is not None:
            zero = 8 * self.offset.numpy.itemsize
        per_group = 8 * self.scale.numpy.itemsize + zero
        return -(-(columns * self.bits + self.groups(columns) * per_group) // 8)

    def decode(self, rows: Any, columns: int) -> Array:
        """Grouped rows as float32[n, columns]."""
        return rows.dequantize()

    def grid(self) -> Grouped | None:
        """Itself."""
        return self

    def on_grid(self, rows: Any, columns: int) -> Any:
        """The rows as they are."""
        return rows

    def takes(self, grid: Grouped) -> Grouped:
        """Itself, whatever there is."""
        return self

    def of_grid(self, rows: Any) -> Any:
        """The rows as they are."""
        return rows

    @property
    def grouped(self) -> Grouped:
        """Itself."""
        return self

    @property
    def can_be_written(self) -> bool:
        """By the codec of a format, which may refuse some."""
        return True

    @property
    def nominal_bits(self) -> int:
        """Bits of a code."""
        return self.bits

    @property
    def uses_importance(self) -> bool:
        """Scales are searched by weighted errors."""
        return True


DENSE: Final = {name: Dense(name) for name in DENSE_DTYPES}
"""The encoding of every dtype."""
F32: Final = DENSE["f32"]
F16: Final = DENSE["f16"]
BF16: Final = DENSE["bf16"]
