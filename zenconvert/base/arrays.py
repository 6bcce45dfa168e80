"""The few operations that decoding takes, on numpy arrays and on torch tensors of any device alike.

Both compute single operations of IEEE float32 and of integers, so that results are the same bit for
bit. torch is imported where a tensor of it is given, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zenconvert.errors import UnsupportedEncoding

Array = Any
"""A ``numpy.ndarray`` or a ``torch.Tensor``."""


def on_host(array: Array) -> bool:
    """Whether it is numpy's."""
    return isinstance(array, np.ndarray)


def dtype_name(array: Array) -> str:
    """The dtype by numpy's name: ``float32``, ``bfloat16``, …"""
    return str(array.dtype).removeprefix("torch.")


def cast(array: Array, dtype: np.dtype[Any] | type[np.generic]) -> Array:
    """The numbers in another dtype; the array itself where it has that one."""
    if on_host(array):
        return array.astype(dtype, copy=False)
    return array.to(_torch(np.dtype(dtype)))


def reinterpreted(array: Array, dtype: np.dtype[Any] | type[np.generic]) -> Array:
    """The bytes of the last dimension as another dtype."""
    if on_host(array):
        return np.ascontiguousarray(array).view(dtype)
    import torch

    return array.clone(memory_format=torch.contiguous_format).view(_torch(np.dtype(dtype)))


def joined(arrays: Sequence[Array], axis: int = -1) -> Array:
    """Arrays one after another along an axis."""
    if on_host(arrays[0]):
        return np.concatenate(arrays, axis=axis)
    import torch

    return torch.cat(list(arrays), dim=axis)


def on_device(array: np.ndarray[Any, Any], device: Any) -> Array:
    """An array of numpy as a tensor on a device of torch; its bytes stay what they are."""
    import torch

    plain = np.require(array, requirements=["C", "W"]).view(np.uint8)
    return torch.from_numpy(plain).to(device).view(_torch(array.dtype))


def beside(table: np.ndarray[Any, Any], array: Array) -> Array:
    """A table of numpy's where ``array`` lies."""
    return table if on_host(array) else on_device(table, array.device)


def taken(table: Array, indexes: Array) -> Array:
    """``table[indexes]`` for a table of one dimension."""
    if on_host(indexes):
        return table[indexes]
    return table[indexes.long()]


def _torch(dtype: np.dtype[Any]) -> Any:
    import torch

    found = getattr(torch, dtype.name, None)  # both libraries, and ml_dtypes, use the same names
    if not isinstance(found, torch.dtype):
        raise UnsupportedEncoding(f"torch has no dtype {dtype.name}")
    return found
