"""Stacks of experts in MXFP4, as HF files have them, and ggml's blocks.

::

    X_blocks  u8 [experts, rows, columns / 32, 16]  byte i holds columns 2 i (low bits) and 2 i + 1
    X_scales  u8 [experts, rows, columns / 32]      exponents of powers of two: 2 ** (byte - 127)

ggml has the exponent first, and byte i holds columns i (low bits) and i + 16: the same four bits
for every number, in other places. An exponent of 255 is no number.

Source: ``integrations/mxfp4`` of transformers, ``conversion/gpt_oss.py`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile
from zenconvert.ggml.encoding import Blocks
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.pieces import Piece

METHOD: Final = "mxfp4"
"""``quant_method`` of such folders."""
BLOCKS: Final = "blocks"
SCALES: Final = "scales"
_TYPE: Final = BY_NAME["mxfp4"]
ENCODING: Final = Blocks(_TYPE.name, _TYPE.block_size, _TYPE.type_size)
_HALF: Final = _TYPE.block_size // 2
_NAN: Final = 255


@dataclass(frozen=True, slots=True)
class StackCodec:
    """The two arrays of rows of a stack."""

    @property
    def name(self) -> str:
        """What the layout is called."""
        return METHOD

    @property
    def mark(self) -> str:
        """Between the name of a stack and that of an array."""
        return "_"

    def pieces(self, encoding: Blocks, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """The arrays of a stack ``[experts, rows, columns]``; of some of its rows ``[rows,
        columns]``, every row of them in one line."""
        *rows, columns = shape
        count = columns // encoding.block_size
        blocks = (*rows, count, _HALF) if len(shape) > 2 else (*rows, count * _HALF)
        return Piece(BLOCKS, "u8", blocks, codes=True), Piece(SCALES, "u8", (*rows, count))

    def unpack(
        self, arrays: Mapping[str, NDArray[np.uint8]], encoding: Blocks
    ) -> NDArray[np.uint8]:
        """ggml's blocks ``u8[rows, row_bytes]``. Raises CorruptFile for an exponent of 255."""
        scales = arrays[SCALES]
        if (scales == _NAN).any():
            where = [int(i) for i in np.argwhere(scales == _NAN)[0]]
            raise CorruptFile(f"the exponent at {where} is {_NAN}, which is no number")
        pairs = arrays[BLOCKS].reshape(*scales.shape, _HALF)
        rows = np.empty((*scales.shape, encoding.block_bytes), np.uint8)
        rows[..., 0] = scales
        codes = np.stack((pairs & 15, pairs >> 4), -1).reshape(*scales.shape, 2 * _HALF)
        rows[..., 1:] = codes[..., :_HALF] | (codes[..., _HALF:] << 4)
        return rows.reshape(len(scales), -1)

    def pack(self, rows: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        """The arrays of ggml's blocks ``u8[rows, row_bytes]``, every row in one line."""
        blocks = rows.reshape(len(rows), -1, _TYPE.type_size)
        halves = blocks[..., 1:]
        codes = np.concatenate((halves & 15, halves >> 4), -1)
        pairs = codes[..., ::2] | (codes[..., 1::2] << 4)
        return {BLOCKS: pairs.reshape(len(rows), -1), SCALES: blocks[..., 0]}
