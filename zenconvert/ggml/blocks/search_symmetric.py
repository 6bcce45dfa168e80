"""Searches for ``x = scale * (code - half)``, sixteen sub-blocks at a time.

Every lane repeats ``make_qx_quants`` or ``make_q3_quants`` of ggml-quants.c, operation by
operation; see :mod:`.search_affine`. The sub-block stands in rows ``start`` ... of ``x``
f32[*, 16]; its codes 0 ... 2 half - 1 go to the same rows of ``codes``. ``weights`` and
``products`` (scratch memory) are f32[n, 16]. In a sub-block of zeros the codes are 0, not ``half``.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.lanes import (
    Floats,
    absolute,
    any_lane,
    load,
    select,
    splat,
    store,
)
from zenconvert.ggml.blocks.rounding import nearest_within

_F: Final = np.float32
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_TENTH: Final = np.float32(0.1)
_NEGLIGIBLE: Final = np.float32(1e-15)


@njit(nogil=True, fastmath=False, forceinline=True)
def search_symmetric(
    x: NDArray[np.float32],
    start: int,
    weights: NDArray[np.float32],
    n: int,
    half: np.float32,
    products: NDArray[np.float32],
    codes: NDArray[np.float32],
) -> Floats:
    """The best scale of nineteen around ``-half / peak``, refitted: ``make_qx_quants``."""
    peak, magnitude = _signed_peak(x, start, n)
    for i in range(n):
        store(products, i, load(weights, i) * load(x, start + i))
    inverse = -half / peak
    sum_xl, sum_ll = _moments(x, start, weights, n, half, products, inverse)
    scale = select(sum_ll == _ZERO, splat(_ZERO), sum_xl / sum_ll)
    best = scale * sum_xl
    for step in range(-9, 10):
        if step != 0:
            new_inverse = -_F(half + _F(_TENTH * _F(step))) / peak
            sum_xl, sum_ll = _moments(x, start, weights, n, half, products, new_inverse)
            is_better = (sum_ll > _ZERO) & (sum_xl * sum_xl > best * sum_ll)
            scale = select(is_better, sum_xl / sum_ll, scale)
            best = select(is_better, scale * sum_xl, best)
            inverse = select(is_better, new_inverse, inverse)
    is_zero = magnitude < _NEGLIGIBLE
    for i in range(start, start + n):
        code = nearest_within(inverse * load(x, i), -half, half - _ONE) + half
        store(codes, i, select(is_zero, splat(_ZERO), code))
    return select(is_zero, splat(_ZERO), scale)


@njit(nogil=True, fastmath=False, forceinline=True)
def _signed_peak(x: NDArray[np.float32], start: int, n: int) -> tuple[Floats, Floats]:
    """(the first element of largest magnitude, its magnitude)."""
    peak, magnitude = splat(_ZERO), splat(_ZERO)
    for i in range(start, start + n):
        value = load(x, i)
        size = absolute(value)
        is_larger = size > magnitude
        peak = select(is_larger, value, peak)
        magnitude = select(is_larger, size, magnitude)
    return peak, magnitude


@njit(nogil=True, fastmath=False, forceinline=True)
def _moments(
    x: NDArray[np.float32],
    start: int,
    weights: NDArray[np.float32],
    n: int,
    half: np.float32,
    products: NDArray[np.float32],
    inverse: Floats,
) -> tuple[Floats, Floats]:
    """Weighted sums of x * code and code * code, codes counted from ``-half``."""
    sum_xl, sum_ll = splat(_ZERO), splat(_ZERO)
    for i in range(n):
        code = nearest_within(inverse * load(x, start + i), -half, half - _ONE)
        sum_xl = sum_xl + load(products, i) * code
        sum_ll = sum_ll + load(weights, i) * code * code
    return sum_xl, sum_ll


@njit(nogil=True, fastmath=False, forceinline=True)
def search_descent(
    x: NDArray[np.float32],
    start: int,
    weights: NDArray[np.float32],
    n: int,
    half: np.float32,
    products: NDArray[np.float32],
    codes: NDArray[np.float32],
) -> Floats:
    """Round with ``-half / peak``, then improve code by code: ``make_q3_quants``."""
    least, most = -half, half - _ONE
    peak, magnitude = _signed_peak(x, start, n)
    inverse = least / peak
    sum_xl, sum_ll = splat(_ZERO), splat(_ZERO)
    for i in range(n):
        w = load(weights, i)
        product = w * load(x, start + i)
        code = nearest_within(inverse * load(x, start + i), least, most)
        store(products, i, product)
        store(codes, start + i, code)
        sum_xl = sum_xl + product * code
        sum_ll = sum_ll + w * code * code
    for _ in range(5):
        has_changed = False
        for i in range(n):
            w, product, old = load(weights, i), load(products, i), load(codes, start + i)
            rest_xl = sum_xl - product * old
            rest_ll = sum_ll - w * old * old
            new = nearest_within(load(x, start + i) * rest_ll / rest_xl, least, most)
            new_xl = rest_xl + product * new
            new_ll = rest_ll + w * new * new
            is_better = (rest_xl > _ZERO) & (new != old) & (new_ll > _ZERO)
            is_better = is_better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
            store(codes, start + i, select(is_better, new, old))
            sum_xl = select(is_better, new_xl, sum_xl)
            sum_ll = select(is_better, new_ll, sum_ll)
            has_changed |= any_lane(is_better)
        if not has_changed:
            break
    is_zero = magnitude < _NEGLIGIBLE
    for i in range(start, start + n):
        store(codes, i, select(is_zero, splat(_ZERO), load(codes, i) + half))
    scale = select(sum_ll > _ZERO, sum_xl / sum_ll, splat(_ZERO))
    return select(is_zero, splat(_ZERO), scale)
