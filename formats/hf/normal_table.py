"""SentencePiece's table of normal forms, applied to a text as SentencePiece does: longest first.

``precompiled_charsmap``::

    u32   bytes of the trie
    u32[] darts-clone's double array, whose leaves are places in what follows
    bytes replacements in UTF-8, each with a zero behind

The tokenizers library has the same table and looks single characters and graphemes up in it, which
is another text for ``\\r\\n`` and for runs of combining marks. Source: ``normalizer.cc`` of
SentencePiece, ``darts.h``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from zenconvert.errors import CorruptFile

_LEAF: Final = 1 << 8
_VALUE: Final = (1 << 31) - 1
_LABEL: Final = 1 << 31 | 0xFF


class NormalTable:
    """Replaces what the table has; ``kept`` are texts that stay as they are."""

    def __init__(self, data: bytes, kept: Sequence[str] = ()) -> None:
        """Raises CorruptFile."""
        size = int.from_bytes(data[:4], "little")
        if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
            raise CorruptFile(f"tokenizer.model: a table of normal forms of {len(data)} bytes")
        self._units: list[int] = np.frombuffer(data, "<u4", size // 4, 4).tolist()
        self._texts = data[4 + size :]
        longest = sorted(filter(None, kept), key=len, reverse=True)
        self._kept = re.compile(f"({'|'.join(map(re.escape, longest))})") if longest else None

    def apply(self, text: str) -> str:
        """The text that is cut into pieces. Raises CorruptFile for a table that leads nowhere."""
        parts = self._kept.split(text) if self._kept is not None else [text]
        try:
            parts[::2] = map(self._replaced, parts[::2])
        except (IndexError, ValueError) as error:
            raise CorruptFile("tokenizer.model: the table of normal forms is damaged") from error
        return "".join(parts)

    def _replaced(self, text: str) -> str:
        data, out, at = text.encode("utf-8", "surrogatepass"), bytearray(), 0
        while at < len(data):
            length, place = self._longest(data, at)
            if length:
                out += self._texts[place : self._texts.index(0, place)]
            else:
                lead = data[at]
                length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
                out += data[at : at + length]
            at += length
        return out.decode("utf-8", "surrogatepass")

    def _longest(self, data: bytes, begin: int) -> tuple[int, int]:
        """Bytes of the longest key that begins there, 0 for none, and where its text is."""
        units, length, place = self._units, 0, 0
        node = _offset(units[0])
        for at in range(begin, len(data)):
            node ^= data[at]
            unit = units[node]
            if unit & _LABEL != data[at]:
                break
            node ^= _offset(unit)
            if unit & _LEAF:
                length, place = at + 1 - begin, units[node] & _VALUE
        return length, place


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
