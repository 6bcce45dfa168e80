"""How AWQ files store a linear ``W[out, in]`` of 4 bits with G groups of columns.

::

    GEMM   qweight int32[in, out/8]   8 outputs a word; nibble i holds output ORDER[i]
           qzeros  int32[G, out/8]    the same order
           scales  float16[G, out]
    GEMV   qweight int32[out, in/8]   8 inputs a word, in order
           qzeros  int32[out, Z]      8 groups a word; Z is rounded up and filled with zeros
           scales  float16[out, 8·Z]
    w[o, i] = scales[g, o] · (code[o, i] − zero[g, o]),  g = i // group

Sources: AutoAWQ ``modules/linear/gemm.py``, ``gemv.py`` (``calculate_zeros_width``). Zeros are
always stored, and as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.formats import int_packing
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.pieces import Piece

BITS: Final = 4
PER_WORD: Final = 8
ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that nibble i of a GEMM word holds."""
_WIDTH_STEPS: Final = {32: 4, 64: 2}
_INVERSE: Final = tuple(int(i) for i in np.argsort(ORDER))

Version = Literal["gemm", "gemv"]


@dataclass(frozen=True, slots=True)
class AwqCodec:
    """One of the two layouts."""

    version: Version

    @property
    def name(self) -> str:
        """``awq-gemm`` or ``awq-gemv``."""
        return f"awq-{self.version}"

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be stored; None when it can."""
        rows, columns = shape
        if encoding.bits != BITS:
            return f"it has {encoding.bits} bits, and AWQ has {BITS}"
        if encoding.ordered:
            return "AWQ has no act-order"
        if rows % PER_WORD or columns % PER_WORD:
            return f"{rows} × {columns} is no multiple of {PER_WORD} either way"
        if columns % (encoding.group or columns):
            return f"its {columns} inputs are no multiple of the group of {encoding.group}"
        group = encoding.group or columns
        if self.version == "gemv" and group < 128 and group not in _WIDTH_STEPS:
            return f"GEMV has groups of 32, 64 and from 128 on, not {group}"
        if encoding.scale.dtype != "f16":
            return f"its scales are {encoding.scale}, and kernels expect f16"
        return None

    def pieces(self, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """qweight, qzeros and scales."""
        (rows, columns), scale = shape, encoding.scale.dtype
        groups = encoding.groups(columns)
        if self.version == "gemm":
            packed, words = (columns, rows // PER_WORD), (groups, rows // PER_WORD)
            return (
                Piece("qweight", "i32", packed, axis=1, items=BITS, codes=True),
                Piece("qzeros", "i32", words, axis=1, items=BITS),
                Piece("scales", scale, (groups, rows), axis=1),
            )
        width = zeros_width(columns, encoding.group or columns)
        return (
            Piece("qweight", "i32", (rows, columns // PER_WORD), codes=True),
            Piece("qzeros", "i32", (rows, width)),
            Piece("scales", scale, (rows, width * PER_WORD)),
        )

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows."""
        zeros = rows.zeros
        if zeros is None:
            zeros = np.full(rows.scales.shape, rows.midpoint, dtype=np.uint8)
        if self.version == "gemm":
            return {
                "qweight": int_packing.pack(_reorder(rows.codes, ORDER), BITS).T,
                "qzeros": int_packing.pack(_reorder(zeros, ORDER), BITS).T,
                "scales": rows.scales.T,
            }
        columns = rows.codes.shape[1]
        width = zeros_width(columns, rows.group or columns) * PER_WORD
        return {
            "qweight": int_packing.pack(rows.codes.T, BITS).T,
            "qzeros": int_packing.pack(_widened(zeros, width).T, BITS).T,
            "scales": _widened(rows.scales, width),
        }

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped) -> GroupedRows:
        """Rows of the arrays."""
        words = arrays["qweight"]
        if self.version == "gemm":
            rows = words.shape[1] * PER_WORD
            codes = _reorder(int_packing.unpack(words.T, BITS, rows), _INVERSE)
        else:
            codes = int_packing.unpack(words.T, BITS, words.shape[1] * PER_WORD).T
        codes = np.ascontiguousarray(codes)
        if codes.shape[1] % (encoding.group or 1):
            raise InvalidInput(f"{codes.shape[1]} inputs are no multiple of {encoding.group}")
        scales, zeros = self.unpack_groups(arrays, encoding, codes.shape[1])
        return GroupedRows(BITS, codes, scales, zeros, encoding.group).canonical()

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Scales and zeros ``[rows, groups]``."""
        scales, words = arrays["scales"], arrays["qzeros"]
        if self.version == "gemm":
            zeros = int_packing.unpack(words.T, BITS, words.shape[1] * PER_WORD)
            return np.ascontiguousarray(scales.T), _reorder(zeros, _INVERSE)
        groups = encoding.groups(columns)
        zeros = int_packing.unpack(words.T, BITS, groups).T
        return scales[:, :groups], np.ascontiguousarray(zeros)


def zeros_width(columns: int, group: int) -> int:
    """Words of zeros in a GEMV row: a multiple that depends on the group size."""
    step = _WIDTH_STEPS.get(group, 1)
    filled = -(-(columns // group) // PER_WORD)
    return -(-filled // step) * step


def _reorder(values: NDArray[np.uint8], order: tuple[int, ...]) -> NDArray[np.uint8]:
    """Reorder every 8 rows of ``uint8[n, …]``."""
    octets = values.reshape(-1, PER_WORD, *values.shape[1:])
    return octets[:, list(order)].reshape(values.shape)


def _widened(values: NDArray[Any], width: int) -> NDArray[Any]:
    out = np.zeros((len(values), width), dtype=values.dtype)
    out[:, : values.shape[1]] = values
    return out
