"""Doing what a plan says: rows of one encoding become rows of another.

:mod:`zenconvert.planning.judging` says beforehand what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base import arrays
from zenconvert.errors import InvalidInput, ZenError
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.encoding import F32, Dense
from zenconvert.model.grouped import GroupedRows, regroup
from zenconvert.model.layout import Choice, Recoding
from zenconvert.model.operations import changed, left_over
from zenconvert.model.operations import moved as moved_columns
from zenconvert.model.row_reader import Read, RowReader, moved
from zenconvert.model.rows import Rows
from zenconvert.model.target import Scheme
from zenconvert.planning.reading import Slabs, read_rows

Quantize = Callable[[NDArray[np.float32], Scheme, NDArray[np.float32] | None], GroupedRows]
"""``(weights f32[rows, columns], scheme, importance f32[columns] or None)`` → codes and scales."""


def unchanged(part: Tensor, choice: Choice) -> tuple[Tensor, Choice]:
    """A part as it is once its numbers are changed as the choice wants them, if they have to be."""
    if (part.change is None and choice.change is None) or not left_over(part.change, choice.change):
        return part, choice
    return replace(part, encoding=F32, change=None), replace(choice, change=None)


def recode(
    rows: Rows,
    part: Tensor,
    choice: Choice,
    found: Recoding,
    weights: NDArray[np.float32] | None,
    where: str,
    quantize: Quantize,
    device: str = "cpu",
) -> Rows:
    """Stored rows of ``part`` in the encoding of ``choice``, as ``found`` says of the two.

    ``device``: a torch device that rounds what it can. Raises InvalidInput.
    """
    if names := left_over(part.change, choice.change):
        rows = changed(decode_rows(rows, part), names)
    if weights is not None:
        weights = moved_columns(weights, choice.change)
    part, choice = unchanged(part, choice)
    target = choice.encoding
    try:
        if found.action == "copy" and target.grouped is None:
            return rows
        if target.dense is not None:
            return _cast(decode_rows(rows, part), target.dense)
        if found.action != "quantize":  # a copy too: data must be what the header said
            grid = _reordered(part.encoding.on_grid(rows, part.columns), choice.columns)
            new = target.takes(grid.encoding)
            assert new is not None  # as the plan said
            stored: Rows = target.of_grid(regroup(grid, new, round_scales=not found.exact))
            return stored
        if target.encodes_on(device.partition(":")[0]):
            there = None if weights is None else arrays.on_device(weights, device)
            numbers = arrays.cast(decode_rows(moved(rows, device), part), np.float32)
            encoded: Rows = target.encode(numbers, there).cpu().numpy()
            return encoded
        values = decode_rows(rows, part).astype(np.float32, copy=False)
        if (new := target.grouped) is None:
            rounded: Rows = target.encode(values, weights)
            return rounded
        assert choice.scheme is not None  # every grouped choice has one
        return regroup(quantize(values, choice.scheme, weights), new)
    except ZenError as error:
        raise InvalidInput(f"{where}: {error}") from error


def _reordered(rows: GroupedRows, columns: tuple[int, ...] | None) -> GroupedRows:
    """The rows with their columns in the order in which a format stores them."""
    if columns is None or rows.group_index is None:
        return rows
    order = np.asarray(columns)
    return replace(rows, codes=rows.codes[:, order], group_index=rows.group_index[order])


def _cast(values: NDArray[Any], target: Dense) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrowed = values.astype(target.numpy, copy=False)
    if target.dtype == "f16" and np.isinf(narrowed).any() and not np.isinf(values).any():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise InvalidInput(f"{largest:g} is beyond the range of f16 (65504); choose bf16 or f32")
    return narrowed


def decode_rows(rows: Rows, tensor: Tensor) -> NDArray[Any]:
    """Stored rows as numbers: dense rows as they are, any others as float32[n, columns]."""
    numbers: NDArray[Any] = tensor.encoding.decode(rows, tensor.columns)
    return numbers


def _in_logical_order(tensor: Tensor, begin: int, end: int) -> Rows:
    rows = read_rows(tensor, begin, end)
    return rows if tensor.order is None else tensor.order.apply(rows)


def _in_slabs(tensor: Tensor, step: int) -> Read:
    read, order = Slabs(tensor, step), tensor.order
    return read if order is None else lambda begin, end: order.apply(read(begin, end))


def _numbers(rows: Rows, tensor: Tensor) -> arrays.Array:
    values = arrays.cast(tensor.encoding.decode(rows, tensor.columns), np.float32)
    if tensor.change is None:
        return values
    host = values if arrays.on_host(values) else values.cpu().numpy()
    return arrays.beside(changed(host, (tensor.change,)), values)


logical_rows: Final = RowReader(_in_logical_order, _in_slabs, _numbers)
"""Logical numbers of any tensor."""


def round_to_nearest(
    weights: NDArray[np.float32], scheme: Scheme, importance: NDArray[np.float32] | None
) -> GroupedRows:
    """Round rows to the nearest points of a grid that fits them best. Raises InvalidInput."""
    import torch

    from zenconvert.calib.solvers.rtn import nearest

    tensor = None if importance is None else torch.from_numpy(importance)
    values = nearest(torch.from_numpy(weights), scheme, importance=tensor)
    if values is None:
        raise InvalidInput("its weights are not finite or beyond float16; they cannot be quantized")
    return values
