"""Numbers that were in other encodings, and that travel as floats: of files that store a matrix in
another arrangement, whose bytes are no rows of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from zenconvert.base.arrays import Array
from zenconvert.model.encoding import F32, Dense, Encoding


@dataclass(frozen=True, slots=True)
class Decoded(Encoding):
    """float32 rows of numbers that are in these encodings where they lie."""

    of: tuple[Encoding, ...]

    def __str__(self) -> str:
        return " and ".join(dict.fromkeys(map(str, self.of)))

    def row_bytes(self, columns: int) -> int:
        """Those of the widest."""
        return max(encoding.row_bytes(columns) for encoding in self.of)

    def decode(self, rows: Any, columns: int) -> Array:
        """The rows as they are."""
        return rows

    def widens_to(self, other: Dense) -> bool:
        """Whether all of them do."""
        return all(encoding.widens_to(other) for encoding in self.of)

    @property
    def is_quantized(self) -> bool:
        """Whether any of them is."""
        return any(encoding.is_quantized for encoding in self.of)

    @property
    def floats(self) -> Dense:
        """Those of the first."""
        return self.of[0].floats

    @property
    def nominal_bits(self) -> int:
        """Those of the widest."""
        return max(encoding.nominal_bits for encoding in self.of)


def decoded(encodings: Iterable[Encoding]) -> Encoding:
    """What numbers of these encodings are once they travel together: of one dtype, or float32."""
    found = tuple(dict.fromkeys(encodings))
    if all(encoding.dense is not None for encoding in found):
        return found[0] if len(found) == 1 else F32
    return Decoded(found)
