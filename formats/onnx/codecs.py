"""How ONNX graphs store a linear ``W[out, in]`` on a grid, B columns to a block, G blocks a row.

::

    MatMulNBits          codes       uint8[out, G, B·b/8]   along the inputs, lowest bits first
    (com.microsoft)      scales      float[out, G]
                         zero_points uint8[out, ⌈G·b/8⌉]    every row padded to whole bytes
    DequantizeLinear     codes       int b [in, out]        flat: the first of two in the low nibble
    (axis 0, block B)    scales      float[G, out]
                         zero_points uint b [G, out]
    w[o, i] = (code[o, i] - zero[o, i // B]) · scale[o, i // B]

Without zero points the zero is ``2 ** (b - 1)`` for MatMulNBits and 0 for the signed integers of
DequantizeLinear. GatherBlockQuantized stores embeddings as MatMulNBits does, and wants zero points.

A grid with float minimums has no zeros: ``w = code · scale + offset``. It is stored around a middle
m, as ``(code - m) · scale``, and the graph adds ``offset + m · scale`` times the sum of a block's
inputs: small codes keep the error of integer activations small.

Sources: onnxruntime ``contrib_defs.cc`` (MatMulNBits, GatherBlockQuantized), ONNX operator
DequantizeLinear 21, ``onnx.proto`` (packing of INT4). Act-order is a permutation of the inputs: the
columns are stored in ``order`` and the graph gathers the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.formats.onnx.packing import pack, packed_width, per_byte, unpack
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import OFFSETS, GroupedRows
from zenconvert.model.pieces import ROW_UNIT, Piece

BITS: Final = (2, 4, 8)
SMALLEST_BLOCK: Final = 16
LARGEST_BLOCK: Final = 256
"""Larger blocks are legal, and fall off the fast kernels of onnxruntime's CPU provider."""

CODES, SCALES, ZEROS = "codes", "scales", "zero_points"


def block_of(group: int | None, columns: int) -> int | None:
    """The largest block that a group of columns splits into; None where there is none."""
    whole = group or columns
    block = whole & -whole  # the largest power of two that divides it
    return min(block, LARGEST_BLOCK) if block >= SMALLEST_BLOCK else None


def _refusal(encoding: Grouped, columns: int) -> str | None:
    """What keeps a grid from either layout."""
    if encoding.bits not in BITS:
        return f"it has {encoding.bits} bits; {', '.join(map(str, BITS))} can be stored"
    block = encoding.group or columns
    if block < SMALLEST_BLOCK or block & (block - 1):
        return f"blocks of {block} columns: they must be a power of two from {SMALLEST_BLOCK} on"
    if encoding.ordered:
        return "its columns are grouped in an order of their own"
    if encoding.scale.dtype not in {"f32", "f16"}:
        return f"its scales are {encoding.scale}; the operators take f32 and f16"
    return None


@dataclass(frozen=True, slots=True)
class NBitsCodec:
    """MatMulNBits and GatherBlockQuantized."""

    columns: int | None = None
    """Columns of a row in a file that is read; blocks may hold some more."""
    block: int | None = None
    """Columns of the one block of a row where it is longer than the row."""
    order: tuple[int, ...] | None = None
    """The logical column at every stored column, in a file that is read."""
    index: tuple[int, ...] | None = None
    """The group of every column, in a file with ``g_idx``."""
    signed: bool = False
    """Codes and zeros are signed integers, as DequantizeLinear may have them in rows."""
    middle: int = 0
    """What is subtracted from the codes of a grid with offsets."""
    explicit: bool = False
    """Zero points say so beside offsets, as GatherBlockQuantized wants; else codes are moved."""

    @property
    def name(self) -> str:
        """The operator."""
        return "MatMulNBits"

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be stored; None when it can."""
        return _refusal(encoding, shape[1])

    def pieces(self, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """Codes, scales and, where they are not all the midpoint, zero points."""
        (rows, columns), bits = shape, encoding.bits
        blocks = encoding.groups(columns)
        blob = packed_width(encoding.group or self.block or columns, bits)
        blob = packed_width(columns, bits) if self.signed else blob * blocks
        pieces = (
            Piece(CODES, "u8", (rows, blob), codes=True),
            Piece(SCALES, encoding.scale.dtype, (rows, blocks)),
        )
        zeros = Piece(ZEROS, "u8", (rows, packed_width(blocks, bits)))
        if encoding.offset is not None:
            offsets = Piece(OFFSETS, encoding.offset.dtype, (rows, blocks))
            return (*pieces, zeros, offsets) if self.explicit else (*pieces, offsets)
        return pieces if encoding.symmetric else (*pieces, zeros)

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows."""
        codes = rows.codes
        if rows.offsets is not None:
            codes = codes + self._moved(rows.bits)
        if missing := rows.scales.shape[1] * (rows.group or 0) - codes.shape[1]:
            codes = np.pad(codes, ((0, 0), (0, max(0, missing))))
        arrays: dict[str, NDArray[Any]] = {CODES: pack(codes, rows.bits), SCALES: rows.scales}
        if rows.zeros is not None:
            arrays[ZEROS] = pack(rows.zeros, rows.bits)
        if rows.offsets is not None:
            middles = np.full(rows.scales.shape, self.middle, dtype=np.uint8)
            arrays |= {ZEROS: pack(middles, rows.bits), OFFSETS: rows.offsets}
        return arrays

    def _moved(self, rows_bits: int) -> np.uint8:
        """What is added to the codes of a grid with offsets: their middle becomes the midpoint."""
        return np.uint8(0 if self.explicit else (1 << (rows_bits - 1)) - self.middle)

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped) -> GroupedRows:
        """Rows of the arrays; columns in logical order."""
        bits, stored = encoding.bits, arrays[CODES]
        codes = unpack(stored, bits, self.columns or stored.shape[1] * per_byte(bits))
        if self.signed:
            codes = codes ^ np.uint8(1 << (bits - 1))
        scales, zeros = self.unpack_groups(arrays, encoding, codes.shape[1])
        if (offsets := arrays.get(OFFSETS)) is not None:
            codes = codes - self._moved(bits)
        index = None if self.index is None else np.asarray(self.index, dtype=np.int32)
        rows = GroupedRows(bits, codes, scales, zeros, encoding.group, index, offsets)
        return _in_order(rows, self.order)

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Scales and zeros ``[rows, groups]``."""
        scales = arrays[SCALES]
        if ZEROS not in arrays or OFFSETS in arrays:
            return scales, None
        zeros = unpack(arrays[ZEROS], encoding.bits, scales.shape[1])
        return scales, zeros ^ np.uint8(1 << (encoding.bits - 1)) if self.signed else zeros


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """DequantizeLinear along axis 0, whose result goes into MatMul."""

    signed: bool | None = None
    """Codes, and zeros, are signed integers; by default where there are no zeros."""
    order: tuple[int, ...] | None = None
    """As in :class:`NBitsCodec`."""
    middle: int = 0
    """As in :class:`NBitsCodec`."""

    @property
    def name(self) -> str:
        """The operator."""
        return "DequantizeLinear"

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be stored; None when it can."""
        share = per_byte(encoding.bits) if encoding.bits in BITS else 1
        if shape[0] % share:
            return f"its {shape[0]} outputs do not fill whole bytes"
        return _refusal(encoding, shape[1])

    def pieces(self, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """Codes, scales and, for unsigned codes, zero points."""
        (rows, columns), bits = shape, encoding.bits
        blocks, items = encoding.groups(columns), packed_width(ROW_UNIT, bits)
        width = packed_width(rows, bits)
        pieces = (
            Piece(CODES, "u8", (columns, width), axis=1, items=items, codes=True),
            Piece(SCALES, encoding.scale.dtype, (blocks, rows), axis=1),
        )
        if encoding.offset is not None:
            return (*pieces, Piece(OFFSETS, encoding.offset.dtype, (blocks, rows), axis=1))
        if encoding.symmetric:
            return pieces
        return (*pieces, Piece(ZEROS, "u8", (blocks, width), axis=1, items=items))

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows."""
        codes, bits = rows.codes, rows.bits
        if rows.offsets is not None:
            codes = (codes - np.uint8(self.middle)) & np.uint8((1 << bits) - 1)
        elif rows.zeros is None:
            codes = codes ^ np.uint8(rows.midpoint)  # two's complement of code - midpoint
        arrays: dict[str, NDArray[Any]] = {CODES: pack(codes.T, bits), SCALES: rows.scales.T}
        if rows.zeros is not None:
            arrays[ZEROS] = pack(rows.zeros.T, bits)
        if rows.offsets is not None:
            arrays[OFFSETS] = rows.offsets.T
        return arrays

    def is_signed(self, encoding: Grouped) -> bool:
        """Whether codes of an encoding are signed integers."""
        plain = encoding.symmetric or encoding.offset is not None
        return plain if self.signed is None else self.signed

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped) -> GroupedRows:
        """Rows of the arrays; columns in logical order."""
        bits, scales = encoding.bits, arrays[SCALES]
        codes = np.ascontiguousarray(unpack(arrays[CODES], bits, scales.shape[1]).T)
        scales, zeros = self.unpack_groups(arrays, encoding, codes.shape[1])
        offsets = None
        if OFFSETS in arrays:
            offsets = np.ascontiguousarray(arrays[OFFSETS].T)
            codes = (codes + np.uint8(self.middle)) & np.uint8((1 << bits) - 1)
        elif self.is_signed(encoding):
            codes ^= np.uint8(1 << (bits - 1))
        rows = GroupedRows(bits, codes, scales, zeros, encoding.group, offsets=offsets)
        return _in_order(rows, self.order)

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Scales and zeros ``[rows, groups]``."""
        scales = np.ascontiguousarray(arrays[SCALES].T)
        if ZEROS not in arrays:
            return scales, None
        zeros = np.ascontiguousarray(unpack(arrays[ZEROS], encoding.bits, len(scales)).T)
        if self.is_signed(encoding):
            zeros ^= np.uint8(1 << (encoding.bits - 1))
        return scales, zeros


def _in_order(rows: GroupedRows, order: tuple[int, ...] | None) -> GroupedRows:
    """Stored columns back in logical order, every one with the group that it was stored in."""
    if order is None:
        return rows.canonical()
    places, groups = np.asarray(order), rows.column_groups()
    codes, index = np.empty_like(rows.codes), np.empty_like(groups)
    codes[:, places], index[places] = rows.codes, groups
    return replace(rows, codes=codes, group_index=index).canonical()
