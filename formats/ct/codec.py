"""How compressed-tensors stores a linear ``W[out, in]`` of b-bit integers with G groups of columns.

::

    weight_packed      int32[out, ⌈in·b/32⌉]  codes + 2^(b-1), a bit stream along the input axis
    weight             int8[out, in]          or codes as they are, where they are not packed
    weight_scale       float[out, G]          [out, 1] for one a row, [1] for one
    weight_zero_point  int32[⌈out·b/32⌉, G]   zeros + 2^(b-1), a stream along the output axis,
                       int8[out, G]           or as they are; not there where all are 0
    weight_g_idx       int32[in]              group of every column, where the order is their own
    weight_shape       int64[2]               out and in, of codes that are packed
    w[o, i] = scale[o, g] · (code[o, i] − zero[o, g])

Source: compressed_tensors' ``pack_quantized`` and ``naive_quantized``. Releases before 0.11 put
⌊32/b⌋ codes into a word, which is the same for 4 and 8 bits alone. From 0.20 on the library reads
no ``weight_g_idx``: none is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile
from zenconvert.formats import int_packing
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.pieces import Piece
from zenconvert.model.scaled import Scaled, ScaledRows

PACKED: Final = "weight_packed"
PLAIN: Final = "weight"
SCALE: Final = "weight_scale"
ZERO: Final = "weight_zero_point"
INDEX: Final = "weight_g_idx"
SHAPE: Final = "weight_shape"
BITS: Final = (4, 8)
_BYTE: Final = np.uint8(128)
_FLOATS: Final = ("f16", "bf16", "f32")


@dataclass(frozen=True, slots=True)
class IntCodec:
    """One variant of the layout."""

    columns: int | None
    """Columns of codes that are packed into words; None where every one has a byte."""
    packed_zeros: bool
    """So are zeros."""
    index: bool
    """There is a ``weight_g_idx``."""
    shared: bool = False
    """One scale for the whole tensor."""
    rows: int | None = None
    """Of a tensor that is written, whose shape goes along."""

    @classmethod
    def written(cls, encoding: Grouped, shape: tuple[int, ...]) -> IntCodec:
        """The one layout that is written: packed, and with the shape."""
        rows, columns = shape
        return cls(columns, packed_zeros=not encoding.symmetric, index=False, rows=rows)

    @property
    def name(self) -> str:
        """The format's name."""
        return "pack-quantized" if self.columns is not None else "int-quantized"

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be stored; None when it can."""
        (rows, columns), bits = shape, encoding.bits
        if bits not in BITS:
            return f"it has {bits} bits; {', '.join(map(str, BITS))} can be stored"
        if encoding.ordered:
            return (
                "its columns are grouped in act-order, and current libraries read no weight_g_idx"
            )
        if columns * bits % int_packing.WORD_BITS:
            return f"rows of {columns} do not fill whole words"
        if not encoding.symmetric and rows * bits % int_packing.WORD_BITS:
            return f"zeros of {rows} rows do not fill whole words"
        if encoding.group is not None and columns % encoding.group:
            return f"its {columns} inputs are no multiple of the group of {encoding.group}"
        if encoding.scale.dtype not in _FLOATS:
            return f"its scales are {encoding.scale}, and libraries expect {', '.join(_FLOATS)}"
        return None

    def pieces(self, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The arrays of a tensor ``[out, in]``."""
        (rows, columns), bits, groups = shape, encoding.bits, encoding.groups(shape[1])
        codes = Piece(PLAIN, "i8", shape, codes=True)
        if self.columns is not None:
            codes = Piece(PACKED, "i32", (rows, int_packing.words(columns, bits)), codes=True)
        scales = Piece(SCALE, encoding.scale.dtype, (rows, groups))
        if self.shared:
            scales = Piece(SCALE, encoding.scale.dtype, (1,), axis=None)
        found = [codes, scales]
        if not encoding.symmetric:
            zeros = Piece(ZERO, "i8", (rows, groups))
            if self.packed_zeros:
                zeros = Piece(ZERO, "i32", (int_packing.words(rows, bits), groups), items=bits)
            found.append(zeros)
        if self.index:
            found.append(Piece(INDEX, "i32", (columns,), axis=None))
        if self.rows is not None:
            found.append(Piece(SHAPE, "i64", (len(shape),), axis=None))
        return tuple(found)

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows, as :meth:`written` lays them out."""
        arrays: dict[str, NDArray[Any]] = {
            PACKED: int_packing.pack(rows.codes.T, rows.bits).T,
            SCALE: rows.scales,
            SHAPE: np.array([self.rows, self.columns], np.int64),
        }
        if rows.zeros is not None:
            arrays[ZERO] = int_packing.pack(rows.zeros, rows.bits)
        return arrays

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped) -> GroupedRows:
        """Rows of the arrays. Raises CorruptFile for scales and indexes that are none."""
        index = arrays.get(INDEX)
        if self.columns is not None:
            codes = int_packing.unpack(arrays[PACKED].T, encoding.bits, self.columns).T
        else:
            codes = arrays[PLAIN].view(np.uint8) ^ _BYTE
        scales, zeros = self.unpack_groups(arrays, encoding, codes.shape[1])
        if self.shared:
            scales = np.broadcast_to(scales, (len(codes), 1))
        if not np.isfinite(scales.astype(np.float32)).all():
            raise CorruptFile("its scales are not all finite")
        if index is not None and not 0 <= index.min() <= index.max() < scales.shape[1]:
            raise CorruptFile(
                f"{INDEX} names groups from {index.min()} to {index.max()}; there are "
                f"{scales.shape[1]}"
            )
        codes = np.ascontiguousarray(codes)
        return GroupedRows(
            encoding.bits, codes, scales, zeros, encoding.group, index if encoding.ordered else None
        ).canonical()

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Scales and zeros, ``[rows, groups]``."""
        scales = arrays[SCALE].reshape(1, 1) if self.shared else arrays[SCALE]
        zeros = arrays.get(ZERO)
        if zeros is None:
            return scales, None
        if self.packed_zeros:
            return scales, int_packing.unpack(zeros, encoding.bits, len(scales))
        return scales, (zeros.view(np.uint8) + np.uint8(1 << (encoding.bits - 1)))


@dataclass(frozen=True, slots=True)
class FloatCodec:
    """8-bit floats ``weight`` and a scale ``weight_scale`` for every tile of some rows."""

    encoding: Scaled

    @property
    def mark(self) -> str:
        """Between the name of a module and that of an array."""
        return "."

    def pieces(self, encoding: Scaled, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The arrays of a tensor ``[out, in]``."""
        tiles = -(-shape[0] // encoding.band), encoding.groups(shape[1])
        codes = Piece(PLAIN, encoding.codes.dtype, shape, codes=True)
        return codes, Piece(SCALE, encoding.scale.dtype, tiles, rows=encoding.band)

    def pack(self, rows: ScaledRows) -> dict[str, NDArray[Any]]:
        """The bytes of every line, of rows that begin with a tile."""
        scales = rows.scales[:: self.encoding.band].astype(self.encoding.scale.numpy)
        return {PLAIN: rows.codes.view(np.uint8), SCALE: scales.view(np.uint8)}

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Scaled) -> ScaledRows:
        """The rows, with a scale for every one of them."""
        codes = arrays[PLAIN]
        width = encoding.tile[1] or codes.shape[1]
        return ScaledRows(codes, arrays[SCALE].astype(np.float32), width)
