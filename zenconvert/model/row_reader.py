"""How whoever computes with numbers gets at those of a tensor, without knowing any file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.arrays import Array, on_device
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.rows import Rows

Read = Callable[[int, int], Rows]
"""``(begin, end)`` → these rows of a tensor."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows of tensors, and makes numbers of them."""

    stored: Callable[[Tensor, int, int], Rows]
    """Rows ``[begin, end)`` in logical order, in their encoding; bounds at multiples of the
    band."""
    in_slabs: Callable[[Tensor, int], Read]
    """A reader of the same for all slabs of so many rows, each once, from any thread."""
    numbers: Callable[[Rows, Tensor], Array]
    """float32[n, columns] of such rows, where they lie: on the host, or on a device of torch."""

    def __call__(self, tensor: Tensor, begin: int, end: int) -> NDArray[np.float32]:
        """Logical numbers in logical order, float32[n, columns]."""
        values: NDArray[np.float32] = self.numbers(self.stored(tensor, begin, end), tensor)
        return values


def moved(rows: Rows, device: Any) -> Any:
    """The same rows on a device of torch."""
    return on_device(rows, device) if isinstance(rows, np.ndarray) else rows.on_device(device)
