"""Searches for the scale of many blocks at once, with a weight for the error of each element.

Source: ``make_qx_quants`` (``rmse_type`` 1 with weights) and ``make_qkx3_quants`` (squared error)
in ggml-quants.c. The block is the SIMD lane: arrays are ``[32 elements, LANES blocks]`` and each
lane adds its 32 elements one after the other in float32, as the C code does. Nothing may be
reordered, or bytes change.

``lanes`` f32[LANE_ROWS, LANES] holds the scalars of each block; its rows are named below.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.arithmetic import nearest_int
from zenconvert.ggml.blocks.block_tiles import LANES

LANE_ROWS: Final = 16

# Results of both searches.
SCALE: Final = 0
LOW: Final = 1
# Working state.
_PEAK, _PEAK_SIZE, _HIGH, _FLAT = 2, 3, 2, 3
_INVERSE, _BEST_INVERSE, _BEST, _BEST_LOW = 4, 5, 6, 7
_SUM_LX, _SUM_LL, _SUM_L, _SUM_W, _SUM_X = 8, 9, 10, 11, 12
_TRY_SCALE, _TRY_LOW, _TRY_ERROR = 13, 14, 15

_EPSILON: Final = np.float32(1e-15)
_ROUND: Final = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, ties to even
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)


@njit(nogil=True, cache=True, fastmath=False)
def _symmetric_level(scaled: np.float32, reach: np.float32) -> np.float32:
    """Nearest integer in -reach ... reach - 1."""
    level = (scaled + _ROUND) - _ROUND
    level = level if level < reach - _ONE else reach - _ONE
    return level if level > -reach else -reach


@njit(nogil=True, cache=True, fastmath=False)
def _level(scaled: np.float32, top: np.float32) -> np.float32:
    """Nearest integer in 0 ... top. A minimum close to the maximum makes very large arguments."""
    level = nearest_int(scaled)
    level = level if level < top else top
    return level if level > _ZERO else _ZERO


@njit(nogil=True, cache=True, fastmath=False)
def _find_peaks(x: NDArray[np.float32], lanes: NDArray[np.float32]) -> None:
    """The first element of largest magnitude of each block."""
    lanes[_PEAK], lanes[_PEAK_SIZE] = _ZERO, _ZERO
    for j in range(32):
        for k in range(LANES):
            size, largest = abs(x[j, k]), lanes[_PEAK_SIZE, k]
            lanes[_PEAK, k] = x[j, k] if size > largest else lanes[_PEAK, k]
            lanes[_PEAK_SIZE, k] = size if size > largest else largest


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _sum_levels(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    reach: np.float32,
    numerator: np.float32,
    lanes: NDArray[np.float32],
) -> None:
    """Sums of w x l and w l l for the levels l that ``numerator / peak`` gives."""
    for k in range(LANES):
        empty = lanes[_PEAK_SIZE, k] < _EPSILON
        lanes[_INVERSE, k] = _ZERO if empty else numerator / lanes[_PEAK, k]
        lanes[_SUM_LX, k], lanes[_SUM_LL, k] = _ZERO, _ZERO
    for j in range(32):
        for k in range(LANES):
            level = _symmetric_level(lanes[_INVERSE, k] * x[j, k], reach)
            lanes[_SUM_LX, k] += w[j, k] * x[j, k] * level
            lanes[_SUM_LL, k] += w[j, k] * level * level


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def search_scale(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    reach: np.float32,
    lanes: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """x ~ SCALE (level - reach): the least squares scale of 19 candidate roundings.

    ``x``, ``w`` f32[32, LANES]; fills ``levels`` f32[32, LANES] with 0 ... 2 reach - 1 and row
    SCALE of ``lanes``. A block of zeros gets scale 0 and levels 0.
    """
    _find_peaks(x, lanes)
    _sum_levels(x, w, reach, -reach, lanes)
    for k in range(LANES):
        weighted = lanes[_SUM_LL, k] != _ZERO
        scale = lanes[_SUM_LX, k] / lanes[_SUM_LL, k] if weighted else _ZERO
        lanes[SCALE, k], lanes[_BEST, k] = scale, scale * lanes[_SUM_LX, k]
        lanes[_BEST_INVERSE, k] = lanes[_INVERSE, k]
    for step in range(-9, 10):
        if step == 0:
            continue
        _sum_levels(x, w, reach, -(reach + np.float32(0.1) * np.float32(step)), lanes)
        for k in range(LANES):
            lx, ll = lanes[_SUM_LX, k], lanes[_SUM_LL, k]
            better = (ll > _ZERO) & (lx * lx > lanes[_BEST, k] * ll)
            scale = lx / ll
            lanes[SCALE, k] = scale if better else lanes[SCALE, k]
            lanes[_BEST, k] = scale * lx if better else lanes[_BEST, k]
            lanes[_BEST_INVERSE, k] = lanes[_INVERSE, k] if better else lanes[_BEST_INVERSE, k]
    for j in range(32):
        for k in range(LANES):
            level = _symmetric_level(lanes[_BEST_INVERSE, k] * x[j, k], reach) + reach
            levels[j, k] = _ZERO if lanes[_PEAK_SIZE, k] < _EPSILON else level


@njit(nogil=True, cache=True, fastmath=False)
def _find_ranges(
    x: NDArray[np.float32], w: NDArray[np.float32], lanes: NDArray[np.float32]
) -> None:
    """Range of each block, the sums of w and of w x; a least element above 0 counts as 0."""
    for k in range(LANES):
        lanes[LOW, k], lanes[_HIGH, k] = x[0, k], x[0, k]
        lanes[_SUM_W, k], lanes[_SUM_X, k] = w[0, k], w[0, k] * x[0, k]
    for j in range(1, 32):
        for k in range(LANES):
            lanes[LOW, k] = x[j, k] if x[j, k] < lanes[LOW, k] else lanes[LOW, k]
            lanes[_HIGH, k] = x[j, k] if x[j, k] > lanes[_HIGH, k] else lanes[_HIGH, k]
            lanes[_SUM_W, k] += w[j, k]
            lanes[_SUM_X, k] += w[j, k] * x[j, k]
    for k in range(LANES):
        lanes[LOW, k] = _ZERO if lanes[LOW, k] > _ZERO else lanes[LOW, k]
        lanes[_FLAT, k] = _ONE if lanes[_HIGH, k] <= lanes[LOW, k] else _ZERO


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _fit_levels(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    top: np.float32,
    numerator: np.float32,
    lanes: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """Levels for the inverse scale ``numerator / range`` and their sums over each block."""
    for k in range(LANES):
        lanes[_INVERSE, k] = numerator / (lanes[_HIGH, k] - lanes[LOW, k])
        lanes[_SUM_L, k], lanes[_SUM_LL, k], lanes[_SUM_LX, k] = _ZERO, _ZERO, _ZERO
    for j in range(32):
        for k in range(LANES):
            level = _level(lanes[_INVERSE, k] * (x[j, k] - lanes[LOW, k]), top)
            weighted = w[j, k] * level
            levels[j, k] = level
            lanes[_SUM_L, k] += weighted
            lanes[_SUM_LL, k] += weighted * level
            lanes[_SUM_LX, k] += weighted * x[j, k]


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _try_line(lanes: NDArray[np.float32]) -> None:
    """Least squares scale and minimum for the current levels; a minimum above 0 becomes 0."""
    for k in range(LANES):
        w, x = lanes[_SUM_W, k], lanes[_SUM_X, k]
        sum_l, ll, lx = lanes[_SUM_L, k], lanes[_SUM_LL, k], lanes[_SUM_LX, k]
        determinant = w * ll - sum_l * sum_l
        low = (ll * x - sum_l * lx) / determinant
        scale = (w * lx - x * sum_l) / determinant
        lanes[_TRY_SCALE, k] = lx / ll if low > _ZERO else scale
        lanes[_TRY_LOW, k] = _ZERO if low > _ZERO else low


@njit(nogil=True, cache=True, fastmath=False)
def _try_errors(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    lanes: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """Weighted squared error of the line that is being tried."""
    lanes[_TRY_ERROR] = _ZERO
    for j in range(32):
        for k in range(LANES):
            difference = lanes[_TRY_SCALE, k] * levels[j, k] + lanes[_TRY_LOW, k] - x[j, k]
            lanes[_TRY_ERROR, k] += w[j, k] * (difference * difference)


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def search_line(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    top: np.float32,
    lanes: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """x ~ SCALE level + LOW: the best of 37 candidate roundings, each fitted by least squares.

    ``x``, ``w`` f32[32, LANES]; fills ``levels`` f32[32, LANES] with 0 ... top and rows SCALE and
    LOW of ``lanes``. An accepted candidate moves LOW, which later candidates start from.
    """
    _find_ranges(x, w, lanes)
    _fit_levels(x, w, top, top, lanes, levels)
    for k in range(LANES):
        lanes[_TRY_SCALE, k], lanes[_TRY_LOW, k] = _ONE / lanes[_INVERSE, k], lanes[LOW, k]
        lanes[SCALE, k] = _ZERO if lanes[_FLAT, k] else lanes[_TRY_SCALE, k]
        lanes[_BEST_INVERSE, k], lanes[_BEST_LOW, k] = lanes[_INVERSE, k], lanes[LOW, k]
    _try_errors(x, w, lanes, levels)
    lanes[_BEST] = lanes[_TRY_ERROR]
    for step in range(37):
        numerator = (np.float32(-0.9) + np.float32(0.05) * np.float32(step)) + top
        _fit_levels(x, w, top, numerator, lanes, levels)
        _try_line(lanes)
        _try_errors(x, w, lanes, levels)
        for k in range(LANES):
            sum_l = lanes[_SUM_L, k]
            solvable = lanes[_SUM_W, k] * lanes[_SUM_LL, k] - sum_l * sum_l > _ZERO
            closer = lanes[_TRY_ERROR, k] < lanes[_BEST, k]
            better = solvable & closer & (lanes[_FLAT, k] == _ZERO)
            lanes[_BEST, k] = lanes[_TRY_ERROR, k] if better else lanes[_BEST, k]
            lanes[_BEST_INVERSE, k] = lanes[_INVERSE, k] if better else lanes[_BEST_INVERSE, k]
            lanes[_BEST_LOW, k] = lanes[LOW, k] if better else lanes[_BEST_LOW, k]
            lanes[SCALE, k] = lanes[_TRY_SCALE, k] if better else lanes[SCALE, k]
            lanes[LOW, k] = lanes[_TRY_LOW, k] if better else lanes[LOW, k]
    for j in range(32):
        for k in range(LANES):
            level = _level(lanes[_BEST_INVERSE, k] * (x[j, k] - lanes[_BEST_LOW, k]), top)
            levels[j, k] = _ZERO if lanes[_FLAT, k] else level
