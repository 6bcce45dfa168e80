"""Small unsigned integers packed into 32-bit words along the first axis, lowest bits first.

32 codes of b bits fill b words as one stream: code i takes bits ``[b·i, b·i + b)``, so codes of 3
bits may straddle two words. For 2, 4 and 8 bits this is the usual ``32 / b`` codes a word.

The planar layout cuts codes of other sizes into parts of 4, 2 and 1 bits, lowest first: of 32 codes
the words of the first parts come first, then those of the second. It takes as many words.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput

WORD_BITS: Final = 32
_BYTE: Final = 8
_IN_BYTES: Final = (2, 4, 8)
"""Widths of which a byte holds several, or one."""
_PLANES: Final = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Bits of a code → widths of its parts."""


def words(count: int, bits: int) -> int:
    """32-bit words that ``count`` codes take; the last may be partly empty."""
    return -(-count * bits // WORD_BITS)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack ``uint8[n, …]`` into ``int32[words(n, bits), …]``; missing codes are zero bits."""
    count = len(codes)
    if _lies_in_columns(codes, bits):
        return np.ascontiguousarray(_joined(codes.T, bits).view("<i4").T)
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
    if packed.ndim == 2 and bits in _IN_BYTES and len(packed) >= words(count, bits):
        lines = np.ascontiguousarray(packed.view(np.int32).T.astype("<i4", copy=False))
        return _parted(lines.view(np.uint8), bits).T[:count]
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


def _lies_in_columns(codes: NDArray[np.uint8], bits: int) -> bool:
    """Whether the codes of a word are neighbours in memory, whole words of them."""
    whole = bits in _IN_BYTES and len(codes) * bits % WORD_BITS == 0
    return codes.ndim == 2 and whole and codes.T.flags.c_contiguous


def _joined(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Neighbours of a row in one byte: ``uint8[rows, n]`` → ``uint8[rows, n·bits/8]``."""
    while bits < _BYTE:
        pairs = codes.view("<u2")
        codes, bits = (pairs | (pairs >> np.uint16(_BYTE - bits))).astype(np.uint8), 2 * bits
    return codes


def _parted(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Undo :func:`_joined`."""
    width = _BYTE
    while width > bits:
        width //= 2
        wide = codes.astype("<u2")
        mask = np.uint16(((1 << width) - 1) * 0x0101)
        codes = ((wide | (wide << np.uint16(_BYTE - width))) & mask).view(np.uint8)
    return codes


def pack_planar(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack ``uint8[n, …]``, n a multiple of 32, into ``int32[n·bits/32, …]`` in planes."""
    units, planes, shift = len(codes) // WORD_BITS, [], 0
    for width in _PLANES[bits]:
        part = (codes >> np.uint8(shift)) & np.uint8((1 << width) - 1)
        planes.append(pack(part, width).reshape(units, width, *codes.shape[1:]))
        shift += width
    return np.concatenate(planes, axis=1).reshape(units * bits, *codes.shape[1:])


def unpack_planar(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unpack ``int32[n·bits/32, …]`` in planes to ``uint8[n, …]``; undoes :func:`pack_planar`.

    Raises InvalidInput for words that are no whole planes.
    """
    units, rest = divmod(len(packed), bits)
    if rest:
        raise InvalidInput(
            f"{len(packed)} words are no whole planes of {bits} bits; a planar layout has "
            f"{bits} words for every {WORD_BITS} codes"
        )
    words = packed.reshape(units, bits, *packed.shape[1:])
    codes = np.zeros((units * WORD_BITS, *packed.shape[1:]), dtype=np.uint8)
    shift = 0
    for width in _PLANES[bits]:
        plane = words[:, shift : shift + width].reshape(units * width, *packed.shape[1:])
        codes |= unpack(plane, width, len(codes)) << np.uint8(shift)
        shift += width
    return codes
