"""Second moments summed over tokens: X·Xᵀ of activations, in tiles.

Where activations are bfloat16 or float16 on CUDA, the tensor cores multiply them as they are and
sum in float32, which loses nothing against float32 copies of them.
"""

from __future__ import annotations

from typing import Final

import torch

_TILE: Final = 4096


def accumulate(moments: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add ``inputs.T @ inputs`` on and below the diagonal tiles of ``moments``.

    Args:
        moments: float32[n, n]; what is above the diagonal is complete after :func:`mirror`.
        inputs: [tokens, n], float32, bfloat16 or float16, on the same device.
    """
    half = inputs.is_cuda and inputs.dtype != torch.float32
    # torch before 2.8 has no product of halves into float32
    direct = half and hasattr(torch.ops.aten.mm, "dtype")
    if not direct:
        inputs = inputs.float()
    for top in range(0, inputs.shape[1], _TILE):
        rows = slice(top, top + _TILE)
        for left in range(0, top + 1, _TILE):
            columns = slice(left, left + _TILE)
            here, across = moments[rows, columns], inputs[:, columns]
            if direct:
                here += torch.mm(inputs[:, rows].T, across, out_dtype=torch.float32)
            else:
                here.addmm_(inputs[:, rows].T, across)


def mirror(moments: torch.Tensor) -> None:
    """Copy the tiles below the diagonal of ``moments`` above it."""
    for top in range(0, len(moments), _TILE):
        rows = slice(top, top + _TILE)
        moments[rows, top + _TILE :] = moments[top + _TILE :, rows].T
