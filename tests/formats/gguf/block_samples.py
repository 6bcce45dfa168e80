"""Weights and importance that the block encoders are tested on: ordinary ones, and every trap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]
Generator = np.random.Generator


def _gaussian(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    return rng.standard_normal(shape) * 0.02


def _zeros(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Positive and negative zeros in any order."""
    return np.where(rng.random(shape) < 0.5, 0.0, -0.0)


def _sparse(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    return np.where(rng.random(shape) < 0.05, rng.standard_normal(shape), _zeros(rng, shape))


def _bf16(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    bits = _gaussian(rng, shape).astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def _scales(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Every block of 32 in another order of magnitude, subnormal numbers among them."""
    magnitudes = 10.0 ** rng.uniform(-45, 3, (shape[0], shape[1] // 32))
    return rng.standard_normal(shape) * np.repeat(magnitudes, 32, axis=1)


def _magnitudes(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Every element in another order of magnitude."""
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-45, 3, shape)


def _powers(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """The largest element of each block a few units in the last place around a power of two."""
    powers = np.ldexp(1.0, rng.integers(-130, 12, (shape[0], shape[1] // 32, 1)))
    peaks = powers.astype(np.float32).view(np.int32) + rng.integers(-40, 3, powers.shape)
    blocks = rng.uniform(-0.5, 0.5, (shape[0], shape[1] // 32, 32)) * powers
    blocks[:, :, 7:8] = peaks.astype(np.int32).view(np.float32)
    return blocks.reshape(shape)


def _near_minus_one(rng: Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Negative with a few outliers: fitted minima come close to the maximum."""
    return np.where(rng.random(shape) < 0.03, -1e-6, -1.0)


WEIGHTS: dict[str, Callable[[Generator, tuple[int, int]], NDArray[Any]]] = {
    "gaussian": _gaussian,
    "heavy tails": lambda rng, shape: rng.standard_t(1, shape) * 0.02,
    "bf16": _bf16,
    "constant": lambda rng, shape: np.full(shape, 0.37),
    "negative constant": lambda rng, shape: np.full(shape, -0.37),
    "zero": lambda rng, shape: np.zeros(shape),
    "negative zero": lambda rng, shape: -np.zeros(shape),
    "zeros of both signs": _zeros,
    "sparse": _sparse,
    "sparse positive": lambda rng, shape: np.abs(_sparse(rng, shape)) * np.sign(rng.random(shape)),
    "positive": lambda rng, shape: np.abs(_gaussian(rng, shape)),
    "negative": lambda rng, shape: -np.abs(_gaussian(rng, shape)),
    "close to one": lambda rng, shape: 1 + rng.standard_normal(shape) * 1e-6,
    "close to minus one": _near_minus_one,
    "half integers": lambda rng, shape: np.rint(rng.standard_normal(shape) * 8) / 2,
    "signs": lambda rng, shape: np.sign(rng.standard_normal(shape)),
    "tiny": lambda rng, shape: rng.standard_normal(shape) * 1e-7,
    "below epsilon": lambda rng, shape: rng.standard_normal(shape) * 5e-16,
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-39,
    "least subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-44,
    "large": lambda rng, shape: rng.standard_normal(shape) * 1e4,
    "scales": _scales,
    "magnitudes": _magnitudes,
    "powers of two": _powers,
}

IMPORTANCE: dict[str, Callable[[Generator, int], NDArray[Any]]] = {
    "uniform": lambda rng, columns: rng.random(columns),
    "heavy tails": lambda rng, columns: np.exp(rng.normal(0, 3, columns)),
    "with zeros": lambda rng, columns: np.maximum(rng.normal(-0.2, 1, columns), 0),
    "mostly zeros": lambda rng, columns: np.where(rng.random(columns) < 0.05, 1.0, 0.0),
    "zero": lambda rng, columns: np.zeros(columns),
    "tiny": lambda rng, columns: rng.random(columns) * 1e-38,
}


def weights(name: str, rows: int, columns: int) -> Weights:
    """f32[rows, columns] of one kind, the same at every call."""
    return WEIGHTS[name](np.random.default_rng(7), (rows, columns)).astype(np.float32)


def importance(name: str, columns: int) -> Weights:
    """f32[columns] of one kind, the same at every call."""
    return IMPORTANCE[name](np.random.default_rng(11), columns).astype(np.float32)
