"""The data of a :class:`~zenconvert.model.encoding.Grouped` tensor, and what is exact on it.

A format stores such a tensor as several arrays, its *pieces*; its :class:`GroupedCodec` says which
they are and turns them into :class:`GroupedRows` and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.arrays import Array, beside, cast, dtype_name, on_device
from zenconvert.errors import InvalidInput
from zenconvert.model.encoding import Dense, Grouped
from zenconvert.model.pieces import PieceCodec

OFFSETS: Final = "offsets"
"""Name of the piece with offsets, in every codec that stores some."""


@dataclass(frozen=True)
class GroupedRows:
    """Some rows of a grouped tensor: integers, a scale and a zero for every group of columns.

    Arrays of numpy; of torch, too, where they are decoded on a device.
    """

    bits: int
    codes: NDArray[np.uint8]
    """uint8[rows, columns], below ``2 ** bits``."""
    scales: NDArray[Any]
    """float[rows, groups] in the stored dtype (float16, bfloat16 or float32); may be negative."""
    zeros: NDArray[np.uint8] | None
    """uint8[rows, groups]; None when every zero is the midpoint."""
    group: int | None = None
    """Columns per group where groups are consecutive; None for one group a row."""
    group_index: NDArray[np.int32] | None = None
    """int32[columns]: the group of every column, where groups are not consecutive."""
    offsets: NDArray[Any] | None = None
    """float[rows, groups]: what is added to ``code * scale``, where there is no zero at all."""

    @property
    def midpoint(self) -> int:
        """The zero of a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def encoding(self) -> Grouped:
        """The encoding that these rows have."""
        names = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
        return Grouped(
            self.bits,
            self.group,
            self.zeros is None and self.offsets is None,
            Dense(names[dtype_name(self.scales)]),
            self.group_index is not None,
            None if self.offsets is None else Dense(names[dtype_name(self.offsets)]),
        )

    def column_groups(self) -> Array:
        """int32[columns]: the group of every column."""
        if self.group_index is not None:
            return self.group_index
        columns = np.arange(self.codes.shape[1], dtype=np.int32)
        return beside(columns // np.int32(self.group or max(1, len(columns))), self.codes)

    def take(self, rows: NDArray[np.intp] | slice) -> GroupedRows:
        """The given rows, in the given order."""
        zeros = None if self.zeros is None else self.zeros[rows]
        offsets = None if self.offsets is None else self.offsets[rows]
        codes, scales = self.codes[rows], self.scales[rows]
        return replace(self, codes=codes, scales=scales, zeros=zeros, offsets=offsets)

    def dequantize(self) -> Array:
        """float32[rows, columns]; exact for float16 and bfloat16 scales, but for the offset."""
        index = self.column_groups()
        values = cast(self.codes, np.float32)
        if self.offsets is not None:
            values *= cast(self.scales, np.float32)[:, index]
            values += cast(self.offsets, np.float32)[:, index]
            return values
        values -= self.midpoint if self.zeros is None else cast(self.zeros, np.float32)[:, index]
        values *= cast(self.scales, np.float32)[:, index]
        return values

    def on_device(self, device: Any) -> GroupedRows:
        """The same arrays on a device of torch."""
        names = ("codes", "scales", "zeros", "group_index", "offsets")
        arrays = {name: getattr(self, name) for name in names}
        moved = {name: on_device(a, device) for name, a in arrays.items() if a is not None}
        return replace(self, **moved)

    def canonical(self) -> GroupedRows:
        """The same numbers without zeros where all are the midpoint, and without an index where it
        says what position says."""
        zeros, index = self.zeros, self.group_index
        if zeros is not None and bool((zeros == self.midpoint).all()):
            zeros = None
        if index is not None:
            plain = replace(self, group_index=None).column_groups()
            index = None if np.array_equal(plain, index) else index
        return replace(self, zeros=zeros, group_index=index)


class GroupedReader(PieceCodec, Protocol):
    """How one format has grouped tensors in its files. Stateless; bit for bit."""

    def unpack_groups(
        self, arrays: Mapping[str, NDArray[Any]], encoding: Grouped, columns: int
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Scales and zeros alone, from the arrays without codes: ``[rows, groups]`` each."""


class GroupedCodec(GroupedReader, Protocol):
    """How one format stores grouped tensors."""

    @property
    def name(self) -> str:
        """What the layout is called, e.g. ``gptq_v2`` or ``awq-gemm``."""

    def refuses(self, encoding: Grouped, shape: tuple[int, ...]) -> str | None:
        """Why a tensor ``[out, in]`` cannot be stored; None when it can."""

    def pack(self, rows: GroupedRows) -> dict[str, NDArray[Any]]:
        """Arrays of some rows (a multiple of :data:`ROW_UNIT`, or the last ones)."""


def regroup(rows: GroupedRows, target: Grouped, *, round_scales: bool = False) -> GroupedRows:
    """The same numbers on the grid of ``target``. Raises InvalidInput where they do not fit.

    Groups may become smaller, bits more, zeros explicit; all of it bit for bit. Only scales may
    round to a narrower type, where ``round_scales`` allows it.
    """
    rows = rows.canonical()
    rows = _finer(rows, target.group)
    if target.bits != rows.bits:
        rows = _wider(rows, target.bits)
    if (target.offset is None) != (rows.offsets is None):
        raise InvalidInput(f"only one of {rows.encoding} and {target} has minimums")
    if target.symmetric and rows.zeros is not None:
        raise InvalidInput(f"its zeros are not all {rows.midpoint}, and {target} has no zeros")
    if not target.symmetric and rows.zeros is None and rows.offsets is None:
        zeros = np.full(rows.scales.shape, rows.midpoint, dtype=np.uint8)
        rows = replace(rows, zeros=zeros)
    if not target.ordered and rows.group_index is not None:
        raise InvalidInput(f"its columns are grouped in an order of their own; {target} has none")
    if target.ordered and rows.group_index is None:
        rows = replace(rows, group_index=rows.column_groups())
    offsets = rows.offsets
    if offsets is not None and target.offset is not None:
        offsets = _cast(offsets, target.offset, "minimums", may_round=round_scales)
    scales = _cast(rows.scales, target.scale, "scales", may_round=round_scales)
    return replace(rows, scales=scales, offsets=offsets)


def _cast(values: NDArray[Any], target: Dense, what: str, *, may_round: bool) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        cast = values.astype(target.numpy)
    if may_round and not np.isfinite(cast).all():
        raise InvalidInput(f"its {what} go beyond the range of {target}")
    if not may_round and not np.array_equal(cast.astype(np.float32), values.astype(np.float32)):
        raise InvalidInput(f"its {what} are not all values of {target}")
    return cast


def _finer(rows: GroupedRows, group: int | None) -> GroupedRows:
    """Smaller consecutive groups: every one repeats the scale and zero of the group it is in."""
    if group == rows.group:
        return rows
    columns = rows.codes.shape[1]
    whole = columns if rows.group is None else rows.group
    if rows.group_index is not None or group is None or whole % group:
        raise InvalidInput(f"groups of {rows.group} columns cannot be split into {group}")
    starts = np.arange(0, columns, group) // whole
    zeros = None if rows.zeros is None else rows.zeros[:, starts]
    offsets = None if rows.offsets is None else rows.offsets[:, starts]
    scales = rows.scales[:, starts]
    return replace(rows, scales=scales, zeros=zeros, offsets=offsets, group=group)


def _wider(rows: GroupedRows, bits: int) -> GroupedRows:
    """More bits: codes and zeros move up together, so that the midpoint stays the midpoint."""
    if bits < rows.bits:
        raise InvalidInput(f"codes of {rows.bits} bits do not fit into {bits}")
    if rows.offsets is not None:
        return replace(rows, bits=bits)
    shift = np.uint8((1 << (bits - 1)) - rows.midpoint)
    zeros = None if rows.zeros is None else rows.zeros + shift
    return replace(rows, bits=bits, codes=rows.codes + shift, zeros=zeros)
