"""8-bit floats with a scale per tile: ``w[o, i] = code[o, i] * scale[o // rows, i // columns]``.

What is released as FP8. A tile is a block of rows and columns, whose last ones may be short, a row
or the whole tensor. The product is one of float32, as every library computes it. Scales may be
stored as the exponents of powers of two (E8M0: ``2 ** (byte - 127)``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from zenconvert.base.arrays import Array, beside, cast, on_device, on_host
from zenconvert.errors import CorruptFile, InvalidInput
from zenconvert.model.encoding import BF16, Dense, Encoding
from zenconvert.model.pieces import Piece

CODES: Final = "codes"
SCALES: Final = "scales"
FLOATS: Final = frozenset({"f8_e4m3", "f8_e5m2"})
"""Dtypes that codes may have."""
SCALE_DTYPES: Final = frozenset({"f32", "f16", "bf16", "f8_e8m0", "u8"})
"""Dtypes that scales may have; ``u8`` are exponents, as ``f8_e8m0`` are."""
_SMALLEST: Final = float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class ScaledRows:
    """Some rows of a scaled tensor; arrays of numpy, or of torch on a device."""

    codes: Array
    """8-bit floats [rows, columns]."""
    scales: Array
    """float32[rows, groups]: those of the tiles that a row is in."""
    columns: int
    """Columns of a tile."""

    def take(self, rows: NDArray[np.intp] | slice) -> ScaledRows:
        """The given rows, in the given order."""
        return replace(self, codes=self.codes[rows], scales=self.scales[rows])

    def on_device(self, device: Any) -> ScaledRows:
        """The same arrays on a device of torch."""
        codes, scales = (on_device(array, device) for array in (self.codes, self.scales))
        return replace(self, codes=codes, scales=scales)

    def dequantize(self) -> Array:
        """float32[rows, columns]."""
        if on_host(self.codes):  # a table is several times as fast as the conversion
            values = _WIDENED[self.codes.dtype.name][self.codes.view(np.uint8)]
        else:
            values = cast(self.codes, np.float32)
        scales = self.scales
        if scales.shape[1] > 1:
            index = np.arange(values.shape[1]) // self.columns
            scales = scales[:, beside(index, values)]
        values *= scales
        return values


@dataclass(frozen=True, slots=True)
class Scaled(Encoding):
    """8-bit floats with a scale for every tile; written are those with tiles of some rows."""

    codes: Dense
    scale: Dense
    tile: tuple[int | None, int | None]
    """Rows and columns that share a scale; None for all of them."""
    exponents: tuple[int, int] | None = None
    """Of the smallest and the largest scale where all are known to be powers of two."""

    def __str__(self) -> str:
        match self.tile:
            case (None, None):
                kind = "tensor"
            case (1, None):
                kind = "channel"
            case (1, columns):
                kind = f"g{columns}"
            case (rows, columns):
                kind = f"{rows or 'all'}x{columns or 'all'}"
        return f"fp8-{self.codes.dtype.removeprefix('f8_')}-{kind}"

    def groups(self, columns: int) -> int:
        """Scales that a row has to do with."""
        return 1 if self.tile[1] is None else -(-columns // self.tile[1])

    def row_bytes(self, columns: int) -> int:
        """Bytes of the codes of one row and of its share of the scales, rounded up."""
        share = self.groups(columns) * self.scale.numpy.itemsize
        return columns * self.codes.numpy.itemsize + -(-share // (self.tile[0] or share))

    def decode(self, rows: Any, columns: int) -> Array:
        """:class:`ScaledRows` as float32[n, columns]."""
        return rows.dequantize()

    def widens_to(self, other: Dense) -> bool:
        """Whether every number is one of ``other``: where scales only move the binary point."""
        if self.exponents is None or other.dtype not in _FINEST:
            return other.dtype in {"f32", "f64"}
        (low, high), (finest, largest) = _RANGES[self.codes.dtype], _FINEST[other.dtype]
        return self.exponents[0] + low >= finest and self.exponents[1] + high <= largest

    def narrowed(self, arrays: Mapping[str, NDArray[Any]]) -> Scaled:
        """With what the scales say. Raises CorruptFile for impossible ones."""
        mantissas, exponents = np.frexp(checked_scales(arrays[SCALES]))
        if not exponents.size or (mantissas != 0.5).any():
            return self
        return replace(self, exponents=(int(exponents.min()) - 1, int(exponents.max()) - 1))

    def encode(self, values: NDArray[np.float32], importance: object) -> ScaledRows:
        """float32[n, columns], whole tiles or the last ones, with the smallest scale of every tile
        that keeps its largest number in range, and codes nearest to that scale as it is stored.
        Raises InvalidInput."""
        (count, columns), (rows, width) = values.shape, self.tile
        assert rows is not None  # as can_be_written says
        width = width or columns
        largest = np.maximum.reduceat(np.abs(values), range(0, count, rows), axis=0)
        largest = np.maximum.reduceat(largest, range(0, columns, width), axis=1)
        if not np.isfinite(largest).all():
            raise InvalidInput("its weights are not finite; they cannot be quantized")
        top = float(ml_dtypes.finfo(self.codes.numpy).max)
        wanted = np.where(largest < top * _SMALLEST, np.float32(1), largest / np.float32(top))
        scales = wanted.astype(self.scale.numpy).astype(np.float32).repeat(rows, axis=0)[:count]
        parts = scales[:, np.arange(columns) // width]
        codes = np.clip(values / parts, -top, top).astype(self.codes.numpy)
        return ScaledRows(codes, scales, width)

    @property
    def can_be_written(self) -> bool:
        """Rows are rounded some at a time: what all of them share is only read."""
        return self.tile[0] is not None

    @property
    def band(self) -> int:
        """Rows of a tile."""
        return self.tile[0] or 1

    @property
    def floats(self) -> Dense:
        """The range of float16 is too small for some, and such models are of bfloat16."""
        return BF16

    @property
    def nominal_bits(self) -> int:
        """Bits of a code."""
        return self.codes.nominal_bits


@dataclass(frozen=True, slots=True)
class ScaledCodec:
    """Codes in one array and scales in another, as all such files have it."""

    shape: tuple[int, ...]
    """Of the array of scales."""

    @property
    def name(self) -> str:
        """What the layout is called."""
        return "scaled"

    def pieces(self, encoding: Scaled, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The arrays of a tensor ``[out, in]``."""
        rows = encoding.tile[0]
        shared = None if rows is None else 0
        scales = Piece(SCALES, encoding.scale.dtype, self.shape or (1,), shared, rows=rows)
        return Piece(CODES, encoding.codes.dtype, shape, codes=True), scales

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Scaled) -> ScaledRows:
        """The rows. Raises CorruptFile for scales that are none."""
        codes, scales = arrays[CODES], checked_scales(arrays[SCALES])
        if encoding.tile[0] is None:
            scales = np.broadcast_to(scales.reshape(1, -1), (len(codes), scales.size))
        scales = scales.reshape(len(codes), -1)
        return ScaledRows(codes, scales, encoding.tile[1] or codes.shape[1])


def checked_scales(scales: NDArray[Any]) -> NDArray[np.float32]:
    """Stored scales as float32. Raises CorruptFile unless all are normal numbers above zero."""
    if scales.dtype == np.uint8:
        scales = scales.view(ml_dtypes.float8_e8m0fnu)
    values: NDArray[np.float32] = scales.astype(np.float32)
    wrong = ~(np.isfinite(values) & (values >= _SMALLEST))
    if wrong.any():
        where = [int(i) for i in np.argwhere(wrong)[0]]
        raise CorruptFile(
            f"the scale at {where} is {values[tuple(where)]:g}; expected normal numbers above zero"
        )
    return values


def _widened(dtype: str) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = (
        np.arange(256, dtype=np.uint8).view(Dense(dtype).numpy).astype(np.float32)
    )
    return numbers


_WIDENED: Final = {Dense(dtype).numpy.name: _widened(dtype) for dtype in sorted(FLOATS)}
_RANGES: Final = {"f8_e4m3": (-9, 9), "f8_e5m2": (-16, 16)}
"""Exponent of the smallest number, and the power of two that all are below."""
_FINEST: Final = {"bf16": (-133, 128), "f16": (-24, 16), "f32": (-149, 128)}
"""Exponent of the smallest number, and the power of two that all are below; mantissas hold more
bits than those of 8-bit floats."""
