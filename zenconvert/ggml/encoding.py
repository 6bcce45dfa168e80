"""ggml blocks as an encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.arrays import Array, beside, on_host
from zenconvert.ggml import block_grids, blocks, integer_grids, nested_grids
from zenconvert.ggml.types import BY_NAME, GgmlType
from zenconvert.model.encoding import BF16, F16, Dense, Encoding, Grouped
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.nested import NestedGrid, NestedRows

_OF_BF16: Final = frozenset({"mxfp4"})
"""Types whose numbers are all ones of bfloat16: few bits times a power of two."""


def encoding_of(ggml_type: GgmlType) -> Encoding:
    """The neutral encoding of a ggml type."""
    if ggml_type.is_plain:
        return Dense(ggml_type.name)
    return Blocks(ggml_type.name, ggml_type.block_size, ggml_type.type_size)


def encoding_named(name: str) -> Encoding:
    """The same by name. Raises KeyError for one that ggml does not have."""
    return encoding_of(BY_NAME[name])


@dataclass(frozen=True, slots=True)
class Blocks(Encoding):
    """ggml block bytes: every ``block_size`` elements of a row take ``block_bytes`` bytes."""

    type: str
    block_size: int
    block_bytes: int

    def __str__(self) -> str:
        return self.type

    def row_bytes(self, columns: int) -> int:
        """Stored bytes of one row of ``columns`` elements."""
        return columns // self.block_size * self.block_bytes

    def decode(self, rows: Array, columns: int) -> Array:
        """``u8[n, row_bytes]`` as float32[n, columns], as ggml does it.

        On a device by its grid; types that lie on none are decoded on the host.
        """
        if on_host(rows):
            return blocks.decode(self.type, rows, columns)
        if self.grid() is not None:
            return self.on_grid(rows, columns).dequantize()
        return beside(blocks.decode(self.type, rows.cpu().numpy(), columns), rows)

    def grid(self) -> Grouped | None:
        """The grid of the type, None for those with none."""
        return block_grids.GRIDS.get(self.type)

    def on_grid(self, rows: Array, columns: int) -> GroupedRows:
        """``u8[n, row_bytes]`` as grouped rows, bit for bit."""
        return block_grids.to_grouped(self.type, rows, columns)

    def widens_to(self, other: Dense) -> bool:
        """True for float32, and for bfloat16 where it has every exponent and mantissas fit."""
        return super(Blocks, self).widens_to(other) or (self.type in _OF_BF16 and other == BF16)

    @property
    def floats(self) -> Dense:
        """float16, whose range is too small for numbers of some types."""
        return BF16 if self.type in _OF_BF16 else F16

    @property
    def can_be_written(self) -> bool:
        """Whether the type has an encoder."""
        return blocks.can_encode(self.type)

    @property
    def uses_importance(self) -> bool:
        """Whether importance weights change the type's bytes."""
        return blocks.uses_importance(self.type)

    def takes(self, grid: Grouped) -> Grouped | None:
        """The grid that :meth:`of_grid` takes where there is ``grid``; None where it takes none."""
        return integer_grids.takes(self.type, grid)

    def rounds_minimum(self, grid: Grouped) -> bool:
        """Whether zeros become a float16 minimum. A midpoint times a float16 is a float16."""
        own = grid.offset is None and not grid.symmetric
        return own and self.type in integer_grids.WITH_MINIMUM

    @property
    def kernels(self) -> tuple[str, ...]:
        """The type."""
        return (self.type,)

    def of_grid(self, rows: GroupedRows) -> NDArray[np.uint8]:
        """Grouped rows as block bytes ``u8[n, row_bytes]``. Raises InvalidInput."""
        return integer_grids.from_grouped(self.type, rows)

    def nested_grid(self) -> NestedGrid | None:
        """That of the type, None for those with none."""
        return nested_grids.GRIDS.get(self.type)

    def on_nested(self, rows: Array, columns: int) -> NestedRows:
        """``u8[n, row_bytes]`` with codes, scales and steps apart, bit for bit, where they lie."""
        return nested_grids.to_nested(self.type, rows, columns)

    def of_nested(self, rows: NestedRows) -> Array:
        """The rows as block bytes ``u8[n, row_bytes]``, where they lie."""
        return nested_grids.from_nested(self.type, rows)

    def encodes_on(self, device: str) -> bool:
        """On GPUs of CUDA, where the type has kernels for them."""
        if device != "cuda":
            return False
        from zenconvert.ggml import devices

        return devices.can_encode(self.type)

    def encode(self, values: Array, importance: Array | None) -> Array:
        """float32[n, columns] rounded to blocks, as ggml does it. Raises InvalidInput."""
        if on_host(values):
            return blocks.encode(self.type, values, importance)
        from zenconvert.ggml import devices

        return devices.encode(self.type, values, importance)
