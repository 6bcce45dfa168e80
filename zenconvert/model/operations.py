"""Reversible operations between the tensors of HF files and those of another vocabulary.

A closed dictionary that the tables in ``architectures/`` name. An operation either moves rows, and
is exact whatever they hold, or changes every number; then it is computed in float32, and whether it
can be undone depends on the numbers (:func:`comes_back`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.model.encoding import Dense
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.row_order import RowOrder

TILE: Final = "tile_columns"
"""Columns of as many heads, group by group → the first head of every group, the second …"""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to every number, in float32."""

    what: str
    """In a few words, w being the number."""
    undone_by: str
    """Name of the change that takes it back."""
    apply: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    moves: bool = False
    """Numbers stay what they are, in other columns of their rows."""


def _rope_pairs(hp: Hyperparameters) -> RowOrder:
    """Halves → neighbouring pairs within a head (``LlamaModel.permute`` in llama.cpp)."""
    half = hp.head_dim // 2
    return RowOrder(tuple(side * half + pair for pair in range(half) for side in (0, 1)))


def _add_one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values + np.float32(1)


def _take_one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - np.float32(1)


def _minus_exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # in float64, as float32 differs in its last bit from processor to processor
    result: NDArray[np.float32] = (-np.exp(values.astype(np.float64))).astype(np.float32)
    return result


def _log_of_minus(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float32] = np.log(-values.astype(np.float64)).astype(np.float32)
    return result


def _tile_heads(hp: Hyperparameters) -> RowOrder:
    """Value heads of linear attention, group by group → the first of every group, the second …
    (``_reorder_v_heads`` in llama.cpp)."""
    heads, groups = hp.linear_value_heads, hp.linear_key_heads
    return RowOrder(tuple(np.arange(heads).reshape(groups, -1).T.flatten().tolist()))


def _tile_channels(hp: Hyperparameters) -> RowOrder:
    """The same of the channels that are convolved, of which those of values are the last."""
    before = 2 * hp.linear_key_width
    values = np.arange(hp.linear_value_width).reshape(hp.linear_value_heads, -1)
    tiled = before + values[list(_tile_heads(hp).index)].flatten()
    return RowOrder((*range(before), *tiled.tolist()))


ROWS: Final[dict[str, Callable[[Hyperparameters], RowOrder]]] = {
    "rope_pairs": _rope_pairs,
    "tile_heads": _tile_heads,
    "tile_channels": _tile_channels,
}
"""Operations that move rows."""
CHANGES: Final = {
    "add_one": Change("1 + w", "take_one", _add_one),
    "take_one": Change("w - 1", "add_one", _take_one),
    "minus_exp": Change("-exp(w)", "log_of_minus", _minus_exp),
    "log_of_minus": Change("log(-w)", "minus_exp", _log_of_minus),
}
"""Operations that change numbers."""
NAMES: Final = frozenset(ROWS) | frozenset(CHANGES) | {TILE}
"""All of them."""


def tiling(hp: Hyperparameters) -> str | None:
    """The change that tiles columns of heads of values; None where every group has one."""
    heads, groups = hp.linear_value_heads, hp.linear_key_heads
    return None if heads == groups else f"{TILE} {groups} {heads // groups}"


def change_named(name: str) -> Change:
    """A change by its name, with the numbers that follow it."""
    if not name.startswith(TILE):
        return CHANGES[name]
    first, second = map(int, name.split()[1:])

    def move(values: NDArray[np.float32]) -> NDArray[np.float32]:
        by_head = values.reshape(len(values), first, second, -1)
        return np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(values.shape)

    what = f"columns of {first} times {second} heads in the order of GGUF"
    return Change(what, f"{TILE} {second} {first}", move, moves=True)


def moved(values: NDArray[np.float32], name: str | None) -> NDArray[np.float32]:
    """Numbers of columns where a change leaves the columns."""
    if name is None or not (change := change_named(name)).moves:
        return values
    found: NDArray[np.float32] = change.apply(values[None])[0]
    return found


def left_over(stored: str | None, wanted: str | None) -> tuple[str, ...]:
    """What is to be done to numbers that are stored with one change undone by ``stored``, so that
    they have ``wanted``: nothing where the two take each other back."""
    if stored is not None and wanted is not None and change_named(stored).undone_by == wanted:
        return ()
    return tuple(name for name in (stored, wanted) if name is not None)


def changed(values: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32]:
    """float32 numbers after changes, in order."""
    result: NDArray[np.float32] = values.astype(np.float32)
    for name in names:
        result = change_named(name).apply(result)
    return result


def comes_back(values: NDArray[Any], names: tuple[str, ...], target: Dense) -> int:
    """How many of the numbers do not come back, once they are changed and stored as ``target``."""
    with np.errstate(over="ignore"):
        stored = changed(values, names).astype(target.numpy)
    back = changed(stored, tuple(change_named(name).undone_by for name in reversed(names)))
    return int(np.count_nonzero(back.astype(values.dtype) != values))
