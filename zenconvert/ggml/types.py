"""The ggml tensor types that a GGUF file may hold (ggml.h ``enum ggml_type``, ggml-common.h).

A row of a tensor is cut into blocks of ``block_size`` elements, each stored in ``type_size`` bytes.
Ids 4, 5, 31-33 and 36-38 were removed from the format and stay refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One tensor type: its id in the file and the geometry of its blocks."""

    name: str
    """Lower-case name as llama.cpp prints it, all lower case (``q4_k``)."""
    id: int
    block_size: int
    """Elements per block."""
    type_size: int
    """Bytes per block."""

    @property
    def is_plain(self) -> bool:
        """True when one element is one number (floats and integers), not a quantized block."""
        return self.block_size == 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises ValueError when ``columns`` is not a multiple of the block."""
        if columns % self.block_size:
            raise ValueError(
                f"{columns} columns are not a multiple of {self.name}'s {self.block_size}"
            )
        return columns // self.block_size * self.type_size


_ROWS: Final = (
    ("f32", 0, 1, 4),
    ("f16", 1, 1, 2),
    ("q4_0", 2, 32, 18),
    ("q4_1", 3, 32, 20),
    ("q5_0", 6, 32, 22),
    ("q5_1", 7, 32, 24),
    ("q8_0", 8, 32, 34),
    ("q8_1", 9, 32, 36),
    ("q2_k", 10, 256, 84),
    ("q3_k", 11, 256, 110),
    ("q4_k", 12, 256, 144),
    ("q5_k", 13, 256, 176),
    ("q6_k", 14, 256, 210),
    ("q8_k", 15, 256, 292),
    ("iq2_xxs", 16, 256, 66),
    ("iq2_xs", 17, 256, 74),
    ("iq3_xxs", 18, 256, 98),
    ("iq1_s", 19, 256, 50),
    ("iq4_nl", 20, 32, 18),
    ("iq3_s", 21, 256, 110),
    ("iq2_s", 22, 256, 82),
    ("iq4_xs", 23, 256, 136),
    ("i8", 24, 1, 1),
    ("i16", 25, 1, 2),
    ("i32", 26, 1, 4),
    ("i64", 27, 1, 8),
    ("f64", 28, 1, 8),
    ("iq1_m", 29, 256, 56),
    ("bf16", 30, 1, 2),
    ("tq1_0", 34, 256, 54),
    ("tq2_0", 35, 256, 66),
    ("mxfp4", 39, 32, 17),
    ("nvfp4", 40, 64, 36),
    ("q1_0", 41, 128, 18),
    ("q2_0", 42, 64, 18),
)

BY_NAME: Final[dict[str, GgmlType]] = {row[0]: GgmlType(*row) for row in _ROWS}
BY_ID: Final[dict[int, GgmlType]] = {t.id: t for t in BY_NAME.values()}
REMOVED_IDS: Final = frozenset({4, 5, 31, 32, 33, 36, 37, 38})
