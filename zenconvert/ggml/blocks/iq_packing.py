"""Fields of the IQ types as bytes, for whole arrays of blocks."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.ggml.blocks.arithmetic import F32_MAX
from zenconvert.ggml.blocks.grids import codes
from zenconvert.ggml.blocks.superblocks import QK_K

_NO_IMPORTANCE: Final = np.empty((0, QK_K), dtype=np.float32)
_NO_IMPORTANCE.flags.writeable = False
_LARGEST_ERROR: Final = float(F32_MAX) / 64
_OVERFLOW: Final = (
    "products of weights and importance overflow float32; divide the importance of this tensor by "
    "a power of two"
)


def by_block(
    importance: NDArray[np.float32] | None, weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Importance f32[columns] as f32[blocks of a row, 256]; None as f32[0, 256].

    Raises InvalidInput where weighted errors of these weights may overflow, at which C stops.
    """
    if importance is None:
        return _NO_IMPORTANCE
    peak = float(max(weights.max(initial=0), -weights.min(initial=0)))
    if float(importance.max(initial=0)) * max(peak, peak**3) > _LARGEST_ERROR:
        raise InvalidInput(_OVERFLOW)
    return importance.reshape(-1, QK_K)


@cache
def _numbers(codebook: str) -> NDArray[np.uint16]:
    stored = codes(codebook)
    numbers = np.zeros(int(stored.max()) + 1, dtype=np.uint16)
    numbers[stored] = np.arange(len(stored))
    return numbers


def point_numbers(codebook: str, found: NDArray[np.int32]) -> NDArray[np.uint16]:
    """The places of points in a codebook, by their codes."""
    numbers: NDArray[np.uint16] = _numbers(codebook)[found]
    return numbers


def halves(d: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``d`` [n] as float16, u8[n, 2]. Raises InvalidInput for NaN and infinity, where C stops."""
    if not np.isfinite(d).all():
        raise InvalidInput(_OVERFLOW)
    with np.errstate(over="ignore"):
        return d.astype("<f2").view(np.uint8).reshape(-1, 2)


def in_runs(values: NDArray[Any], members: int) -> NDArray[Any]:
    """[n, fields] as [n, fields / members, members]."""
    return values.reshape(len(values), -1, members)


def packed(values: NDArray[Any], members: int, bits: int, dtype: str = "u1") -> NDArray[np.uint8]:
    """Fields [n, fields] of ``bits`` each, ``members`` to a little-endian word, lowest first.

    Returns u8[n, bytes]. Higher bits of a field than its own spill into the next.
    """
    shifts = (bits * np.arange(members)).astype(np.uint32)
    words = np.bitwise_or.reduce(in_runs(values, members).astype(np.uint32) << shifts, axis=2)
    octets: NDArray[np.uint8] = words.astype(f"<{dtype}").view(np.uint8)
    return octets
