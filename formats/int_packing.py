"""Small unsigned integers packed into 32-bit words along the first axis, lowest bits first.

32 codes of b bits fill b words as one stream: code i takes bits ``[b·i, b·i + b)``, so codes of 3
bits may straddle two words. For 2, 4 and 8 bits this is the usual ``32 / b`` codes a word.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WORD_BITS: Final = 32


def words(count: int, bits: int) -> int:
    """32-bit words that ``count`` codes take; the last may be partly empty."""
    return -(-count * bits // WORD_BITS)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack ``uint8[n, …]`` into ``int32[words(n, bits), …]``; missing codes are zero bits."""
    count = len(codes)
    units = -(-count // WORD_BITS)
    if count % WORD_BITS:
        padding = np.zeros((units * WORD_BITS - count, *codes.shape[1:]), dtype=np.uint8)
        codes = np.concatenate([codes, padding])
    units_of_codes = codes.reshape(units, WORD_BITS, *codes.shape[1:])
    out = np.zeros((units, bits, *codes.shape[1:]), dtype=np.uint32)
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        column = units_of_codes[:, index].astype(np.uint32)
        out[:, word] |= column << np.uint32(shift)
        if shift + bits > WORD_BITS:
            out[:, word + 1] |= column >> np.uint32(WORD_BITS - shift)
    packed = out.reshape(units * bits, *codes.shape[1:])[: words(count, bits)]
    return np.ascontiguousarray(packed).view(np.int32)


def unpack(packed: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpack the first ``count`` codes of ``int32[words, …]`` to ``uint8[count, …]``."""
    stored = np.ascontiguousarray(packed).view(np.uint32)
    units = -(-count // WORD_BITS)
    missing = units * bits - len(stored)
    if missing > 0:
        stored = np.concatenate([stored, np.zeros((missing, *stored.shape[1:]), dtype=np.uint32)])
    stored = stored[: units * bits].reshape(units, bits, *stored.shape[1:])
    out = np.empty((units, WORD_BITS, *stored.shape[2:]), dtype=np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        column = stored[:, word] >> np.uint32(shift)
        if shift + bits > WORD_BITS:
            column = column | (stored[:, word + 1] << np.uint32(WORD_BITS - shift))
        out[:, index] = (column & mask).astype(np.uint8)
    return out.reshape(units * WORD_BITS, *out.shape[2:])[:count]
