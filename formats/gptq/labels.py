"""What the settings of a GPTQ folder say of its modules, and single modules do not: told by name.

Runtimes go by the settings or by the data, each in its own places. A module that differs from what
is said of all is read as its data says, and people are warned; settings that modules may have of
their own (``dynamic``, ``extra_config``) say nothing of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.formats import int_packing
from zenconvert.formats.gptq.codec import GptqCodec
from zenconvert.formats.gptq.settings import Settings
from zenconvert.formats.packed_folder import ReadAt, among, named, values_of
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.checkpoint import StoredPieces, Tensor
from zenconvert.model.encoding import Grouped

Modules = Mapping[str, Tensor]
"""Module → its weight, whose encoding is read off the data."""


def is_ordered(entry: Entry, columns: int, groups: int, read: ReadAt) -> bool:
    """True when the group of a column does not follow from its position.

    Raises InvalidInput for a ``g_idx`` that points nowhere.
    """
    if entry.shape != (columns,):
        return False
    plain, data = _plain_index(columns, groups)
    if entry.dtype == "i32" and read(entry.path, entry.offset, entry.nbytes) == data:
        return False
    index = values_of(entry)
    if index.size and (index.min() < 0 or index.max() >= groups):
        raise InvalidInput(
            f"{entry.path}: {entry.name} names groups from {index.min()} to {index.max()}; there "
            f"are {groups}"
        )
    return not np.array_equal(index, plain)


@lru_cache(maxsize=64)
def _plain_index(columns: int, groups: int) -> tuple[NDArray[np.int32], bytes]:
    """The group of every column in its plain order, and as a file has it."""
    plain = np.arange(columns, dtype="<i4") // -(-columns // groups)
    return plain, plain.tobytes()


def differences(table: Mapping[str, Any], said: Settings, modules: Modules) -> list[str]:
    """What the settings say of widths, groups and orders, and the data does not."""
    grids = {name: _grid(tensor) for name, tensor in modules.items()}
    found = list(said.warnings)
    bits = {name: grid.bits for name, grid in grids.items()}
    sizes = {name: grid.group or modules[name].shape[1] for name, grid in grids.items()}
    for key, actual in (("bits", bits), ("group_size", sizes)):
        wanted = table.get(key)
        if type(wanted) is not int or key in said.varied or not (wanted > 0 or key != "bits"):
            continue
        others = [n for n, has in actual.items() if not _fits(key, wanted, has, modules[n])]
        if others:
            shown = ", ".join(map(str, sorted({actual[name] for name in others})[:4]))
            found.append(
                f"labelled {key} {wanted}, and the data has {shown}{among(others, modules)}: "
                "read so"
            )
    return found + _orders(table, said, modules, grids)


def with_other_zeros(modules: Modules, offset: int, read: ReadAt) -> set[str]:
    """The modules of which some zero is not the midpoint and ``offset``.

    All zeros are read, a hundredth of the weights or less: runtimes whose kernels for symmetric
    weights ignore them would compute something else than those that do not.
    """
    return {name for name, tensor in modules.items() if not _is_symmetric(tensor, offset, read)}


def _grid(tensor: Tensor) -> Grouped:
    grid = tensor.encoding.grouped
    assert grid is not None
    return grid


def _fits(key: str, wanted: int, actual: int, tensor: Tensor) -> bool:
    """Whether a module is as said; a group is at most as large as its row, or all of it."""
    if key == "bits" or wanted <= 0:
        return actual == (wanted if key == "bits" else tensor.shape[1])
    return -(-tensor.shape[1] // wanted) == -(-tensor.shape[1] // actual)


def _orders(
    table: Mapping[str, Any], said: Settings, modules: Modules, grids: Mapping[str, Grouped]
) -> list[str]:
    """What ``desc_act`` says of the columns' groups, and ``g_idx`` does not."""
    ordered = [name for name, grid in grids.items() if grid.ordered]
    found = []
    if ordered and not said.act_order:
        label = "is false" if table.get("desc_act") is False else "is not there"
        found.append(
            f"desc_act {label}, and the g_idx of {len(ordered)} of {len(modules)} modules has the "
            f"columns in an order of their own (act-order){named(ordered, modules)}: "
            "read so"
        )
    plain = [n for n, grid in grids.items() if not grid.ordered and grid.group is not None]
    if ordered and plain and said.act_order and "desc_act" not in said.varied:
        found.append(
            f"desc_act is true, and columns have their plain order{among(plain, modules)}: read so"
        )
    if uneven := [name for name in ordered if not _is_even(modules[name])]:
        found.append(
            f"g_idx gives groups other numbers of columns{among(uneven, modules)}: read so, and "
            "kernels that sort columns by group compute something else"
        )
    return found


def _is_even(tensor: Tensor) -> bool:
    """Whether every group has as many columns as the others."""
    index = values_of(_entry(tensor, "g_idx"))
    groups = _grid(tensor).groups(tensor.shape[1])
    return np.unique(np.bincount(index, minlength=groups)).size == 1


def _is_symmetric(tensor: Tensor, offset: int, read: ReadAt) -> bool:
    """Whether all zeros are stored as the midpoint and ``offset``."""
    stored, grid = tensor.stored, _grid(tensor)
    assert isinstance(stored, StoredPieces)
    assert isinstance(stored.codec, GptqCodec)
    level = (1 << (grid.bits - 1)) + offset
    row = _packed(level, grid.bits, tensor.rows, planar=stored.codec.planar)
    wanted, place = row * grid.groups(tensor.columns), stored.pieces["qzeros"]
    return read(place.path, place.offset, len(wanted)) == wanted


@lru_cache(maxsize=64)
def _packed(level: int, bits: int, rows: int, *, planar: bool) -> bytes:
    pack = int_packing.pack_planar if planar else int_packing.pack
    return pack(np.full((rows, 1), level, np.uint8), bits).tobytes()


def _entry(tensor: Tensor, name: str) -> Entry:
    """A piece of a tensor."""
    stored, grid = tensor.stored, _grid(tensor)
    assert isinstance(stored, StoredPieces)
    piece = next(p for p in stored.codec.pieces(grid, tensor.shape) if p.name == name)
    place = stored.pieces[name]
    return Entry(place.name, piece.dtype, piece.shape, place.path, place.offset, piece.nbytes)
