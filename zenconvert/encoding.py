"""How the numbers of one tensor are stored: the neutral encodings that every format maps to.

* :class:`Dense` is one number per element (``f32``, ``f16``, ``bf16``, …).
* :class:`Blocks` is ggml block bytes as stored in GGUF (``q4_k``, …).

An encoding is known from headers alone. Data travels in row slabs: ``Dense`` as an array
``[rows, columns]`` of its dtype, ``Blocks`` as ``uint8[rows, row_bytes]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from zenconvert.errors import UnsupportedEncoding

DENSE_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
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


@dataclass(frozen=True, slots=True)
class Dense:
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


@dataclass(frozen=True, slots=True)
class Blocks:
    """ggml block bytes: every ``block_size`` elements of a row take ``block_bytes`` bytes."""

    type: str
    block_size: int
    block_bytes: int

    def __str__(self) -> str:
        return self.type

    def row_bytes(self, columns: int) -> int:
        """Stored bytes of one row of ``columns`` elements."""
        return columns // self.block_size * self.block_bytes


Encoding = Dense | Blocks

F32: Final = Dense("f32")
F16: Final = Dense("f16")
BF16: Final = Dense("bf16")
