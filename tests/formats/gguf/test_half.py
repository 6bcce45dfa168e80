"""float16 bits in compiled kernels."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zenconvert.ggml.blocks.half import f16_bits_to_f32, f32_to_f16_bits


@njit  # type: ignore[untyped-decorator]
def to_halves(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    for i in range(values.size):
        out[i] = f32_to_f16_bits(values[i])


@njit  # type: ignore[untyped-decorator]
def to_floats(halves: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(halves.size):
        out[i] = f16_bits_to_f32(halves[i])


def test_every_float16_is_exact_and_its_neighbourhood_rounds_to_even() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    floats = np.empty(halves.size, dtype=np.float32)
    to_floats(halves, floats)
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(floats), halves >= 1 << 15)

    finite = floats[np.isfinite(floats)]
    with np.errstate(over="ignore"):
        middle = ((finite.astype(np.float64) + np.roll(finite, -1)) / 2).astype(np.float32)
        near = np.concatenate([finite, middle, [65519.996, 65520, 1e38, np.inf, -np.inf]])
        near = near.astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), -near])
        expected = near.astype(np.float16).view(np.uint16)
    found = np.empty(near.size, dtype=np.uint16)
    to_halves(near, found)
    np.testing.assert_array_equal(found, expected)


def test_nan_becomes_one_quiet_nan() -> None:
    nans = np.array([0x7F800001, 0xFFC12345], dtype=np.uint32).view(np.float32)
    found = np.empty(2, dtype=np.uint16)
    to_halves(nans, found)
    assert found.tolist() == [0x7E00, 0xFE00]
