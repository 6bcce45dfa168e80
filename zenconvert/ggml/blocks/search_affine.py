"""Searches for ``x = scale * code + minimum``, sixteen sub-blocks or super-blocks at a time.

Every lane repeats ``make_qkx2_quants`` / ``make_qkx3_quants`` (scale and minimum of a sub-block)
or ``make_qp_quants`` (scale of the scales) of ggml-quants.c, operation by operation: float32, in
order, strict comparisons, so that the first of equal candidates wins. Branches of C are selections.
"""

from __future__ import annotations

from typing import Final, NamedTuple

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
    to_floats,
)
from zenconvert.ggml.blocks.rounding import at_most, nearest, nearest_within
from zenconvert.ggml.blocks.superblocks import Tile

_F: Final = np.float32
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_TENTH: Final = np.float32(0.1)
_NEGLIGIBLE: Final = np.float32(1e-15)
_BYTE: Final = np.int32(0xFF)


class Sweep(NamedTuple):
    """The tried inverse scales: (``first`` + i ``step`` + ``most``) / range, i = 0 ... ``last``."""

    most: np.float32
    """The largest code."""
    first: np.float32
    step: np.float32
    last: int
    absolute_error: bool = False
    """Measure absolute errors rather than squared ones."""


@njit(nogil=True, fastmath=False, forceinline=True)
def search_affine(tile: Tile, start: int, n: int, sweep: Sweep) -> tuple[Floats, Floats]:
    """(scale, minus minimum) of the sub-block in rows ``start`` ... of ``tile``; fills its codes.

    A step that lowers the error moves the minimum, and with it the candidates of the later steps.
    """
    low, high, sum_w, sum_x = _range(tile, start, n)
    is_flat, flat_low = high == low, low
    inverse = sweep.most / (high - low)
    scale = _ONE / inverse
    best_inverse, best_low = inverse, low
    _set_codes(tile, start, n, inverse, low, sweep.most)
    least_error = _error(tile, start, n, scale, low, sweep.absolute_error)
    for i in range(sweep.last + 1):
        steps = _F(_F(sweep.first + _F(sweep.step * _F(i))) + sweep.most)
        inverse = steps / (high - low)
        sum_l, sum_ll, sum_xl = _moments(tile, start, n, inverse, low, sweep.most)
        determinant = sum_w * sum_ll - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        is_above = new_low > _ZERO
        new_low = select(is_above, splat(_ZERO), new_low)
        new_scale = select(is_above, sum_xl / sum_ll, new_scale)
        error = _error(tile, start, n, new_scale, new_low, sweep.absolute_error)
        is_better = (determinant > _ZERO) & (error < least_error)
        least_error = select(is_better, error, least_error)
        best_inverse = select(is_better, inverse, best_inverse)
        best_low = select(is_better, low, best_low)
        scale = select(is_better, new_scale, scale)
        low = select(is_better, new_low, low)
    _set_codes(tile, start, n, select(is_flat, splat(_ZERO), best_inverse), best_low, sweep.most)
    return select(is_flat, splat(_ZERO), scale), _ZERO - select(is_flat, flat_low, low)


@njit(nogil=True, fastmath=False, forceinline=True)
def _range(tile: Tile, start: int, n: int) -> tuple[Floats, Floats, Floats, Floats]:
    """(minimum or 0 if that is less, maximum, sum of the weights, weighted sum)."""
    low = load(tile.x, start)
    high = low
    sum_w = load(tile.weights, 0)
    sum_x = sum_w * low
    for i in range(1, n):
        x, w = load(tile.x, start + i), load(tile.weights, i)
        low = select(x < low, x, low)
        high = select(x > high, x, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
    return select(low > _ZERO, splat(_ZERO), low), high, sum_w, sum_x


@njit(nogil=True, fastmath=False, forceinline=True)
def _set_codes(
    tile: Tile, start: int, n: int, inverse: Floats, low: Floats, most: np.float32
) -> None:
    for i in range(start, start + n):
        store(tile.codes, i, nearest_within(inverse * (load(tile.x, i) - low), _ZERO, most))


@njit(nogil=True, fastmath=False, forceinline=True)
def _moments(
    tile: Tile, start: int, n: int, inverse: Floats, low: Floats, most: np.float32
) -> tuple[Floats, Floats, Floats]:
    """Set the codes; returns the weighted sums of code, code * code and code * x."""
    sum_l, sum_ll, sum_xl = splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for i in range(n):
        x = load(tile.x, start + i)
        code = nearest_within(inverse * (x - low), _ZERO, most)
        store(tile.codes, start + i, code)
        weighted = load(tile.weights, i) * code
        sum_l = sum_l + weighted
        sum_ll = sum_ll + weighted * code
        sum_xl = sum_xl + weighted * x
    return sum_l, sum_ll, sum_xl


@njit(nogil=True, fastmath=False, forceinline=True)
def _error(
    tile: Tile, start: int, n: int, scale: Floats, low: Floats, absolute_error: bool
) -> Floats:
    """Weighted sum of the errors of ``scale * code + low``."""
    error = splat(_ZERO)
    for i in range(n):
        difference = scale * load(tile.codes, start + i) + low - load(tile.x, start + i)
        difference = absolute(difference) if absolute_error else difference * difference
        error = error + load(tile.weights, i) * difference
    return error


@njit(nogil=True, fastmath=False, forceinline=True)
def search_positive(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    n: int,
    most: np.int32,
    codes: NDArray[np.float32],
) -> Floats:
    """Scale of ``value = scale * code`` over ``n`` rows; fills ``codes``, 0 ... ``most``.

    A value can be negative by rounding, and so can its code. C keeps codes in bytes, so that such a
    code comes back 256 larger; the sums took it as it was.
    """
    peak = splat(_ZERO)
    for i in range(n):
        x = load(values, i)
        peak = select(peak > x, peak, x)
    inverse = _F(most) / peak
    scale = _ONE / inverse
    least_error = splat(_ZERO)
    for i in range(n):
        x = load(values, i)
        difference = x - scale * to_floats(nearest(inverse * x) & _BYTE)
        least_error = least_error + load(weights, i) * difference * difference
    for step in range(-4, 5):
        if step != 0:
            new_inverse = _F(_F(_TENTH * _F(step)) + _F(most)) / peak
            error = _positive_error(values, weights, n, most, new_inverse)
            is_better = error < least_error
            least_error = select(is_better, error, least_error)
            inverse = select(is_better, new_inverse, inverse)
    scale = _descend(values, weights, n, most, inverse, codes)
    is_zero = peak < _NEGLIGIBLE
    for i in range(n):
        store(codes, i, select(is_zero, splat(_ZERO), load(codes, i)))
    return select(is_zero, splat(_ZERO), scale)


@njit(nogil=True, fastmath=False, forceinline=True)
def _positive_error(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    n: int,
    most: np.int32,
    inverse: Floats,
) -> Floats:
    scale = _ONE / inverse
    error = splat(_ZERO)
    for i in range(n):
        x = load(values, i)
        difference = x - scale * to_floats(at_most(nearest(inverse * x), most))
        error = error + load(weights, i) * difference * difference
    return error


@njit(nogil=True, fastmath=False, forceinline=True)
def _descend(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    n: int,
    most: np.int32,
    inverse: Floats,
    codes: NDArray[np.float32],
) -> Floats:
    """Round to codes, then give each in turn its best value, up to five times; returns the scale.

    C leaves a lane after a round without change; further rounds would not change it either.
    """
    sum_xl, sum_ll = splat(_ZERO), splat(_ZERO)
    for i in range(n):
        x, w = load(values, i), load(weights, i)
        rounded = at_most(nearest(inverse * x), most)
        code = to_floats(rounded)
        store(codes, i, to_floats(rounded & _BYTE))
        sum_xl = sum_xl + w * x * code
        sum_ll = sum_ll + w * code * code
    for _ in range(5):
        has_changed = False
        for i in range(n):
            x, w, old = load(values, i), load(weights, i), load(codes, i)
            rest_xl = sum_xl - w * x * old
            rest_ll = sum_ll - w * old * old
            rounded = at_most(nearest(x * rest_ll / rest_xl), most)
            new = to_floats(rounded)
            new_xl = rest_xl + w * x * new
            new_ll = rest_ll + w * new * new
            is_better = (rest_xl > _ZERO) & (rest_ll > _ZERO) & (new != old)
            is_better = is_better & (new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll)
            store(codes, i, select(is_better, to_floats(rounded & _BYTE), old))
            sum_xl = select(is_better, new_xl, sum_xl)
            sum_ll = select(is_better, new_ll, sum_ll)
            has_changed |= any_lane(is_better)
        if not has_changed:
            break
    return select(sum_ll > _ZERO, sum_xl / sum_ll, splat(_ZERO))
