"""How GPTQ files store a linear ``W[out, in]`` of b bits with G groups of columns.

::

    qweight int32[in·b/32, out]   codes, a bit stream along the input axis
    qzeros  int32[G, out·b/32]    zeros, the same stream along the output axis
    scales  float16[G, out]
    g_idx   int32[in]             group of every input column; some files leave it out
    w[o, i] = scales[g, o] · (code[i, o] − zero[g, o]),  g = g_idx[i]

Sources: AutoGPTQ ``qlinear_cuda_old.py``, GPTQModel ``nn_modules/qlinear``. Version 1 stores every
zero less one, version 2 as it is. Trap: a zero of 0 becomes −1 in version 1; AutoGPTQ lets its bits
run over the rest of the word and GPTQModel borrows from the next zero (and adds back the whole word
when it reads). We never write one, and read each kind of file as its own tool does. The planar
variant is version 2 in another bit layout (``int_packing``), the same for 2, 4 and 8 bits.
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

BITS: Final = (2, 3, 4, 8)
"""What every consumer reads, and what is written; auto-round and GPTQModel know 5 to 7 as well."""
ZeroRule = Literal["plus_one", "plus_one_by_word", "as_is"]


@dataclass(frozen=True, slots=True)
class GptqCodec:
    """One variant of the layout."""

    zeros: ZeroRule
    """How a stored zero becomes the real one."""
    index: bool = True
    """Whether there is a ``g_idx``."""
    planar: bool = False

    @property
    def name(self) -> str:
        """``checkpoint_format`` of the variant."""
        if self.planar:
            return "gptq_p"
        return "gptq_v2" if self.zeros == "as_is" else "gptq"

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor cannot be stored; None when it can."""
        rows, columns = shape
        if encoding.bits not in BITS:
            return f"it has {encoding.bits} bits; {', '.join(map(str, BITS))} can be stored"
        if columns % int_packing.WORD_BITS or rows * encoding.bits % int_packing.WORD_BITS:
            return f"its {rows} × {columns} codes do not fill whole words"
        if encoding.group is not None and columns % encoding.group:
            return f"its {columns} inputs are no multiple of the group of {encoding.group}"
        if not encoding.symmetric and self.name == "gptq":
            return "version 1 cannot hold a zero of 0; use version 2"
        if encoding.ordered and not self.index:
            return "act-order needs g_idx"
        if encoding.scale.dtype != "f16":
            return f"its scales are {encoding.scale}, and kernels expect f16"
        return None

    def pieces(self, encoding: Grouped, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """qweight, qzeros, scales and, where there is one, g_idx."""
        (rows, columns), bits = shape, encoding.bits
        groups = encoding.groups(columns)
        packed = (int_packing.words(columns, bits), rows)
        zeros = (groups, int_packing.words(rows, bits))
        pieces = (
            Piece("qweight", "i32", packed, axis=1, codes=True),
            Piece("qzeros", "i32", zeros, axis=1, items=bits),
            Piece("scales", encoding.scale.dtype, (groups, rows), axis=1),
        )
        return (*pieces, Piece("g_idx", "i32", (columns,), axis=None)) if self.index else pieces

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows."""
        zeros = rows.zeros
        if zeros is None:
            zeros = np.full(rows.scales.shape, rows.midpoint, dtype=np.uint8)
        if self.zeros != "as_is":
            if not zeros.all():
                raise InvalidInput("a zero of 0 cannot be stored in GPTQ version 1")
            zeros = zeros - np.uint8(1)
        pack = int_packing.pack_planar if self.planar else int_packing.pack
        arrays: dict[str, NDArray[Any]] = {
            "qweight": pack(rows.codes.T, rows.bits),
            "qzeros": pack(zeros, rows.bits).T,
            "scales": rows.scales.T,
        }
        if self.index:
            arrays["g_idx"] = rows.column_groups().astype(np.int32)
        return arrays

    def unpack(self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped) -> GroupedRows:
        """Rows of the arrays. Raises InvalidInput for a ``g_idx`` that points nowhere."""
        index = arrays["g_idx"] if self.index else None
        words, bits = arrays["qweight"], encoding.bits
        columns = len(index) if index is not None else len(words) * int_packing.WORD_BITS // bits
        codes = self._unpack(words, bits, columns).T
        scales, zeros = self.unpack_groups(arrays, encoding, columns)
        if index is not None and (index.min() < 0 or index.max() >= scales.shape[1]):
            raise InvalidInput(
                f"g_idx names groups from {index.min()} to {index.max()}; there are "
                f"{scales.shape[1]}"
            )
        codes = np.ascontiguousarray(codes)
        return GroupedRows(bits, codes, scales, zeros, encoding.group, index).canonical()

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Scales and real zeros, ``[rows, groups]``."""
        scales = np.ascontiguousarray(arrays["scales"].T)
        words, bits = arrays["qzeros"].T, encoding.bits
        if self.zeros == "plus_one_by_word" and int_packing.WORD_BITS % bits == 0:
            ones = np.uint32(sum(1 << at for at in range(0, int_packing.WORD_BITS, bits)))
            words = np.ascontiguousarray(words).view(np.uint32) + ones
        zeros = self._unpack(words, bits, scales.shape[0])
        by_code = int_packing.WORD_BITS % bits != 0
        if self.zeros == "plus_one" or (self.zeros == "plus_one_by_word" and by_code):
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
        return scales, zeros

    def _unpack(self, words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
        if self.planar:
            return int_packing.unpack_planar(words, bits)
        return int_packing.unpack(words, bits, count)
