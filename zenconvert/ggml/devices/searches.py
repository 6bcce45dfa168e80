"""The searches of ggml's encoders on a device of torch: :mod:`.kernels`, launched.

The first dimension of every array is the elements of a sub-block, all others number sub-blocks:
element i of neighbouring lanes lies side by side. Imported only where Triton is installed.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

import torch
import triton

from zenconvert.ggml.devices import kernels

LAUNCHING: Final = Lock()
"""Threads share the device, and kernels are compiled when they are first launched."""
_LANES: Final = 128
_NARROW: Final = 32  # where a program holds all the codes of its lanes
_HOW: Final = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
_NARROW_HOW: Final = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


def ordered_sums(values: torch.Tensor) -> torch.Tensor:
    """float32[...]: sums over the first dimension of float32[n, ...], in order."""
    sums = torch.empty_like(values[0])
    lanes = sums.numel()
    with LAUNCHING:
        kernels.sum_kernel[_grid(lanes)](values, sums, lanes, len(values), LANES=_LANES, **_HOW)
    return sums


def square_roots(values: torch.Tensor) -> torch.Tensor:
    """Correctly rounded, which torch's own are not on every processor."""
    values = values.contiguous()
    roots, lanes = torch.empty_like(values), values.numel()
    with LAUNCHING:
        kernels.root_kernel[_grid(lanes)](values, roots, lanes, LANES=_LANES, **_HOW)
    return roots


def affine(
    x: torch.Tensor, weights: torch.Tensor, most: int, numerators: torch.Tensor, *, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scales, lows float32[...], codes u8[n, ...]) of ``x = scale * code + low``.

    ``x`` and ``weights`` are float32[n, ...]; inverse scales ``numerators`` / range are tried one
    after another.
    """
    scales, lows = torch.empty_like(x[0]), torch.empty_like(x[0])
    codes, lanes = torch.empty_like(x, dtype=torch.uint8), scales.numel()
    with LAUNCHING:
        kernels.affine_kernel[_grid(lanes)](
            x, weights, numerators, scales, lows, codes, lanes, float(most),
            STEPS=len(numerators), N=len(x), ABSOLUTE=absolute, LANES=_LANES, **_HOW,
        )  # fmt: skip
    return scales, lows, codes


def symmetric(
    x: torch.Tensor, weights: torch.Tensor, half: int, numerators: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales float32[...], codes u8[n, ...]) of ``x = scale * (code - half)``."""
    scales, codes = torch.empty_like(x[0]), torch.empty_like(x, dtype=torch.uint8)
    lanes = scales.numel()
    with LAUNCHING:
        kernels.scale_kernel[_grid(lanes)](
            x, weights, numerators, numerators, numerators, scales, codes, lanes, -float(half),
            STEPS=len(numerators), EVEN=True, LEVELS=2 * half, N=len(x), LANES=_LANES, **_HOW,
        )  # fmt: skip
    return scales, codes


def tabled(
    x: torch.Tensor,
    weights: torch.Tensor,
    levels: torch.Tensor,
    middles: torch.Tensor,
    numerators: torch.Tensor,
) -> torch.Tensor:
    """Scales float32[...] of ``x = scale * levels[code]``."""
    scales = torch.empty_like(x[0])
    lanes = scales.numel()
    with LAUNCHING:
        kernels.scale_kernel[_grid(lanes)](
            x, weights, numerators, levels, middles, scales, scales, lanes, 0.0,
            STEPS=len(numerators), EVEN=False, LEVELS=len(levels), N=len(x), LANES=_LANES, **_HOW,
        )  # fmt: skip
    return scales


def descent(x: torch.Tensor, weights: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`symmetric`, by changing one code after another."""
    scales, codes = torch.empty_like(x[0]), torch.empty_like(x, dtype=torch.uint8)
    lanes = scales.numel()
    with LAUNCHING:
        kernels.descent_kernel[_grid(lanes, _NARROW)](
            x, weights, scales, codes, lanes, float(half), N=len(x), LANES=_NARROW, **_NARROW_HOW
        )
    return scales, codes


def positive(
    values: torch.Tensor, weights: torch.Tensor, most: int, numerators: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales float32[...], codes int32[n, ...]) of ``values`` float32[n, ...] from 0 on."""
    scales, codes = torch.empty_like(values[0]), torch.empty_like(values, dtype=torch.int32)
    lanes = scales.numel()
    with LAUNCHING:
        kernels.positive_kernel[_grid(lanes, _NARROW)](
            values, weights, numerators, scales, codes, lanes, most,
            STEPS=len(numerators), N=len(values), LANES=_NARROW, **_NARROW_HOW,
        )  # fmt: skip
    return scales, codes


def _grid(lanes: int, width: int = _LANES) -> tuple[Any]:
    return (triton.cdiv(lanes, width),)
