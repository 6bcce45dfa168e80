"""Weights and inputs like those of a language model, small, for tests of the solvers."""

from __future__ import annotations

import torch


def inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated activations float32[tokens, width] with channels of unlike sizes."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(width)  # the same for every seed
    shared = torch.randn(width // 4, width, generator=mixing) * 2
    size = torch.randn(width, generator=mixing).mul_(0.7).exp_()
    hidden = torch.randn(tokens, width // 4, generator=random) / (width // 4) ** 0.5
    noise = torch.randn(tokens, width, generator=random)
    result: torch.Tensor = (hidden @ shared + 0.5 * noise) * size
    return result


def moments(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Mean of x·xᵀ over such inputs, float32[width, width]."""
    values = inputs(tokens, width, seed)
    return values.T @ values / tokens


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """float32[rows, columns]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=random) * 0.05


def weighted_error(weight: torch.Tensor, values: torch.Tensor, second: torch.Tensor) -> float:
    """tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ), float64."""
    gap, full, h = (weight - values).double(), weight.double(), second.double()
    return float(((gap @ h) * gap).sum() / ((full @ h) * full).sum())
