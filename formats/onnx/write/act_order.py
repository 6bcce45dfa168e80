"""Act-order in graphs: columns sorted by group, activations gathered in that order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile
from zenconvert.formats.onnx.codecs import BlockCodec, NBitsCodec
from zenconvert.model.checkpoint import StoredPieces, Tensor
from zenconvert.model.encoding import Dense


def column_order(tensor: Tensor) -> tuple[int, ...] | None:
    """The columns of an act-order tensor sorted by group, as indexes of logical columns.

    Reads the index of the groups. None where the groups are not all of one size.
    """
    stored, grid = tensor.stored, tensor.encoding.grouped
    assert isinstance(stored, StoredPieces)
    assert grid is not None
    if isinstance(stored.codec, NBitsCodec | BlockCodec):
        return stored.codec.order
    index = _group_index(stored, tensor)
    sizes = np.bincount(np.maximum(index, 0), minlength=grid.groups(tensor.columns))
    if index.min() < 0 or bool((sizes != grid.group).any()):
        return None
    return tuple(np.argsort(index, kind="stable").tolist())


def _group_index(stored: StoredPieces, tensor: Tensor) -> NDArray[Any]:
    """The one array that all rows share: the group of every column."""
    pieces = stored.codec.pieces(stored.encoding, tensor.shape)
    piece = next(p for p in pieces if p.axis is None)
    place = stored.pieces[piece.name]
    with place.path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(piece.nbytes)
    if len(data) < piece.nbytes:
        raise CorruptFile(f"{place.path}: ends within {place.name}")
    return np.frombuffer(data, dtype=Dense(piece.dtype).numpy)
