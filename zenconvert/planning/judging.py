"""What it costs that rows of one encoding become rows of another, and why: asked once for every
tensor, while planning, from headers.

:mod:`zenconvert.planning.recoding` does what was said here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile
from zenconvert.model.checkpoint import StoredHalf, StoredPieces, Tensor
from zenconvert.model.decoded import decoded
from zenconvert.model.encoding import F16, Dense, Encoding, Grouped
from zenconvert.model.grouped import OFFSETS, GroupedReader
from zenconvert.model.layout import Choice, Recoding
from zenconvert.model.operations import change_named, comes_back, left_over
from zenconvert.model.target import Scheme
from zenconvert.planning.reading import read_groups, read_rows
from zenconvert.planning.recoding import decode_rows


def recoding(source: Tensor, choice: Choice) -> Recoding:
    """How one source tensor becomes the chosen encoding, whether that is exact, and why.

    Of tensors whose numbers are changed, which are small ones, it reads the data.
    """
    if names := left_over(source.change, choice.change):
        return _changed(source, choice, names)
    return _between(
        source.encoding, choice.encoding, source.columns, choice.scheme,
        keeps_order=choice.columns is None,
    )  # fmt: skip


def recoding_of_floats(choice: Choice) -> tuple[Recoding] | None:
    """How the one part of a choice becomes it, where that is floats as they were found, and
    nothing changes its numbers on their way; None for any other choice, which takes a closer look.
    """
    if len(choice.parts) != 1 or choice.change is not None:
        return None
    (part,) = choice.parts
    if part.encoding.dense is None or part.change is not None or part.origin is not None:
        return None
    if isinstance(part.stored, StoredPieces):
        return None
    return _alone(
        part.encoding, choice.encoding, part.columns, choice.scheme,
        keeps_order=choice.columns is None,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _alone(
    old: Encoding, new: Encoding, columns: int, scheme: Scheme | None, *, keeps_order: bool
) -> tuple[Recoding]:
    return (_between(old, new, columns, scheme, keeps_order=keeps_order),)


@lru_cache(maxsize=256)  # a model has few kinds of tensors, and as many as it likes of each
def _between(
    old: Encoding, new: Encoding, columns: int, scheme: Scheme | None, *, keeps_order: bool
) -> Recoding:
    """How rows of one encoding become those of another, whose numbers are the same."""
    if (grid := new.grouped) is not None:
        return _to_grid(old, grid, columns, scheme, keeps_order=keeps_order)
    if old == new:
        return Recoding("copy", True)
    if new.dense is None:
        return _to_blocks(old, new, columns)
    if old.dense is None:
        return _decoded(old, new.dense)
    if old.widens_to(new.dense):
        return Recoding("repack", True, f"every {old} value is a {new} value")
    return Recoding("quantize", False, f"{old} is rounded to {new}")


def _decoded(old: Encoding, new: Dense) -> Recoding:
    if old.widens_to(new):
        return Recoding("decode", True, f"{old} is decoded")
    return Recoding("decode", False, f"{old} is decoded and rounded")


def _changed(source: Tensor, choice: Choice, names: tuple[str, ...]) -> Recoding:
    """Numbers that are changed on their way: exact where all of them would come back."""
    what = " and ".join(change_named(name).what for name in names)
    numbers = choice.encoding.dense
    if all(change_named(name).moves for name in names):
        return _moved(source.encoding, choice, source.columns, what)
    if numbers is None:
        return Recoding("quantize", False, f"{what} is rounded to {choice.encoding}")
    values = decode_rows(read_rows(source, 0, source.rows), source)
    lost = comes_back(values, names, numbers)
    if not lost:
        return Recoding("repack", True, f"{what}, computed in f32, and every number can come back")
    share = f"{lost} of {values.size} numbers cannot come back"
    return Recoding("repack", False, f"{what} is rounded to {choice.encoding}: {share}")


def _moved(old: Encoding, choice: Choice, columns: int, what: str) -> Recoding:
    """Numbers that change their places in rows alone: floats stay what they are."""
    if old.is_quantized and choice.encoding.dense is None:
        return Recoding("quantize", False, f"{old} is decoded and quantized again: {what}")
    found = _between(old, choice.encoding, columns, choice.scheme, keeps_order=True)
    action = "repack" if found.action == "copy" else found.action
    return Recoding(action, found.exact, "; ".join(filter(None, (found.why, what))))


def _to_grid(
    old: Encoding, new: Grouped, columns: int, scheme: Scheme | None, *, keeps_order: bool
) -> Recoding:
    if not old.is_quantized:
        return Recoding("quantize", False, f"{old} is rounded to the grid {scheme or new}")
    grid = old.grid()
    if grid is None:
        return Recoding("quantize", False, f"{old} is decoded and quantized again: it is no grid")
    if not keeps_order:
        grid = replace(grid, ordered=False)  # the order becomes that of the file
    return _onto(grid, new, columns, str(old))


def _onto(grid: Grouped, new: Grouped, columns: int, name: str) -> Recoding:
    """Numbers on one grid onto another, of the same tensor."""
    reason = misfit(grid, new, columns)
    if reason is None:
        return Recoding("repack", True, f"the codes and scales of {name} are kept bit for bit")
    rounded = replace(grid, scale=new.scale, offset=grid.offset and (new.offset or grid.offset))
    if misfit(rounded, new, columns) is None:
        how = f"the codes of {name} are kept; its scales are {grid.scale} and round to {new.scale}"
        return Recoding("repack", False, f"{how}, by 2^-11 of themselves or 2^-25 at most")
    return Recoding("quantize", False, f"{name} is decoded and quantized again: {reason}")


def _to_blocks(old: Encoding, new: Encoding, columns: int) -> Recoding:
    if not old.is_quantized:
        return Recoding("quantize", False, f"{old} is rounded to the grid of {new}")
    own = old.grouped
    if own is not None and (grid := new.takes(own)) is not None:
        found = _onto(own, grid, columns, str(old))
        if found.exact and new.rounds_minimum(own):
            return Recoding("repack", False, "codes are kept; minimum -zero·scale rounds to f16")
        return found
    return Recoding("quantize", False, f"{old} is decoded and quantized again")


def misfit(old: Grouped, new: Grouped, columns: int) -> str | None:
    """Why numbers of one grid cannot all lie on another; None when they do, bit for bit."""
    whole = columns if old.group is None else old.group
    if old.ordered and not new.ordered:
        return "its columns are grouped in act-order"
    if new.group != old.group and (new.group is None or old.ordered or whole % new.group):
        return f"its scales hold for {whole} columns, not {new.group or columns}"
    if new.bits < old.bits:
        return f"its codes have {old.bits} bits"
    if old.offset is not None and new.offset is None:
        return "it is no grid without minimums"
    if new.offset is not None and (old.offset is None or not old.offset.widens_to(new.offset)):
        return f"its minimums are {old.offset or 'zero points'}, not {new.offset}"
    if new.symmetric and not old.symmetric:
        return "it has zero points of its own"
    if not old.scale.widens_to(new.scale):
        return f"its scales are {old.scale}, not {new.scale}"
    return None


def refined(tensor: Tensor, choice: Choice) -> Tensor:
    """The tensor with the narrowest encoding that its scales and zeros allow.

    Files may store zeros that are all the midpoint, or scales in a wider type than they need. They
    are read only where that decides whether the choice can be had bit for bit.
    """
    if isinstance(tensor.stored, StoredHalf):
        encoding = refined(tensor.stored.whole, choice).encoding
        return replace(tensor, encoding=decoded([encoding]) if tensor.stored.keys else encoding)
    old, stored, target = tensor.encoding.grouped, tensor.stored, choice.encoding
    if old is None and isinstance(stored, StoredPieces):
        # of a target that rounds whatever they say, they decide nothing
        return tensor if target.dense is None else _narrowed(tensor, stored)
    if old is None or (new := target.takes(old)) is None:
        return tensor
    plain = replace(old, ordered=old.ordered and choice.columns is None)
    fits = misfit(plain, new, tensor.columns) is None and not target.rounds_minimum(old)
    if fits or not isinstance(stored, StoredPieces):
        return tensor
    narrowest = replace(plain, symmetric=old.offset is None, scale=F16, offset=old.offset and F16)
    if misfit(narrowest, new, tensor.columns) is not None:
        return tensor
    arrays = read_groups(tensor, stored)
    codec, own = cast("GroupedReader", stored.codec), stored.encoding.grouped
    assert own is not None  # as the tensor is, too
    scales, zeros = codec.unpack_groups(arrays, own, tensor.columns)
    offsets = arrays.get(OFFSETS)
    symmetric = zeros is None or bool((zeros == 1 << (old.bits - 1)).all())
    encoding = replace(
        old,
        symmetric=symmetric and offsets is None,
        scale=F16 if _fits_f16(scales) else old.scale,
        offset=F16 if offsets is not None and _fits_f16(offsets) else old.offset,
    )
    return replace(tensor, encoding=encoding)


def _narrowed(tensor: Tensor, stored: StoredPieces) -> Tensor:
    if type(tensor.encoding).narrowed is Encoding.narrowed:
        return tensor  # its arrays tell nothing of it
    try:
        arrays = read_groups(tensor, stored)
        return replace(tensor, encoding=tensor.encoding.narrowed(arrays))
    except CorruptFile as error:
        raise CorruptFile(f"{stored.path}: {stored.name}: {error}") from error


def _fits_f16(values: NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    return np.array_equal(narrow, values.astype(np.float32))
