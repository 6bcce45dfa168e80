"""The search of IQ1_S and IQ1_M, sixteen super-blocks at a time.

``x = scale * (level - 1 + shift)`` with three levels and a shift of 1/8 or -1/8, one for a
sub-block (IQ1_S) or one for each half of it (IQ1_M). In order of size the weights of a sub-block
are cut in two places into low, middle and high ones, in every way and under every shift; the cut
that fits best gives levels and scale, and groups of eight that are no point of the codebook move to
the best near point (:mod:`.neighbours`). Every lane performs the operations of
``quantize_row_iq1_*_impl`` of ggml-quants.c; its ``qsort`` is taken to be stable, as in glibc.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.arithmetic import F32_MAX
from zenconvert.ggml.blocks.lanes import (
    LANES,
    Floats,
    Ints,
    Mask,
    absolute,
    any_lane,
    load,
    scratch,
    select,
    splat,
    square_root,
    store,
    to_floats,
)
from zenconvert.ggml.blocks.neighbours import Neighbours, nearest_point
from zenconvert.ggml.blocks.rounding import nearest_within
from zenconvert.ggml.blocks.superblocks import QK_K, read_blocks

_F: Final = np.float32
_I: Final = np.int32
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_SHIFT: Final = np.float32(0.125)
_UP: Final = (_F(-0.875), _F(0.125), _F(1.125))
"""The levels under the shift 1/8."""
_DOWN: Final = (_F(-1.125), _F(-0.125), _F(0.875))
"""And under -1/8."""


class Cut(NamedTuple):
    """Scratch memory: f32[rows, 16] or i32[rows, 16], a lane per super-block."""

    x: NDArray[np.float32]
    """The weights of the super-block, [256]."""
    importance: NDArray[np.float32]
    """[256]."""
    weights: NDArray[np.float32]
    """Of the errors in the sub-block, [32]."""
    ranks: NDArray[np.int32]
    """Places of the elements in order of size, [32]."""
    sums_x: NDArray[np.float32]
    """Weighted sums of the elements before each place: [33], or twice [17] for the halves."""
    sums_w: NDArray[np.float32]
    """The same of their weights."""
    tails: NDArray[np.float32]
    """IQ1_S: terms of the elements from each place on, [4 * 33]."""
    levels: NDArray[np.float32]
    """-1, 0, 1, 2, over and over, [1]."""
    up: NDArray[np.float32]
    """The shift of a group, [1]."""
    scale: NDArray[np.float32]
    """The scale of a sub-block, then the unit of the super-block, [1]."""
    corners: NDArray[np.int32]
    """Codes of the levels found, one per group of eight, [32]."""
    codes: NDArray[np.int32]
    """Codes of points for them, [32]."""
    scales: NDArray[np.float32]
    """Of the sub-blocks, [16]."""
    shifts: NDArray[np.int32]
    """Two bits for each sub-block, [16]: bit 1 the first, bit 0 the second half is shifted down."""


def new_cut() -> Cut:
    """Memory for one call of :func:`search_ternary`."""
    rows = (QK_K, QK_K, 32, 32, 34, 34, 4 * 33, 1, 1, 1, 32, 32, 16, 16)
    cut = Cut(*(scratch.py_func(count) for count in rows))
    cut.levels[0] = np.arange(LANES) % 4 - 1
    ints = ("ranks", "corners", "codes", "shifts")
    return cut._replace(**{name: getattr(cut, name).view(np.int32) for name in ints})


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def search_ternary(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    lists: Neighbours,
    length: int,
    negligible: np.float32,
    cut: Cut,
    codes: NDArray[np.int32],
    shifts: NDArray[np.int32],
    scales: NDArray[np.int32],
    d: NDArray[np.float32],
) -> None:
    """Fit ``blocks`` f32[n, 256], with ``importance`` f32[blocks of a row, 256] if not empty.

    Sub-blocks have ``length`` 32 (IQ1_S) or 16 (IQ1_M) elements and are zero where no magnitude
    reaches ``negligible``. Fills ``codes`` [n, 32] of points, ``shifts`` and ``scales`` (0 to 7)
    [n, 256 / length] and the super-blocks' unit of scale ``d`` [n].
    """
    count = blocks.shape[0]
    has_importance = importance.shape[0] > 0
    for first in range(0, count, LANES):
        read_blocks(blocks, first, count, cut.x)
        if has_importance:
            read_blocks(importance, first, importance.shape[0], cut.importance)
        squares = splat(_ZERO)
        for i in range(QK_K):
            squares = squares + load(cut.x, i) * load(cut.x, i)
        mean = _F(2) * squares / _F(QK_K)
        peak = splat(_ZERO)
        for start in range(0, QK_K, length):
            _weigh(cut, start, length, mean, has_importance)
            scale = _fit_sub_block(cut, start, length, negligible, lists)
            store(cut.scales, start // length, scale)
            peak = select(peak > scale, peak, scale)
        _finish(cut, length, mean, has_importance, peak)
        for column in range(min(LANES, count - first)):
            d[first + column] = cut.scale[0, column]
            for j in range(scales.shape[1]):
                scales[first + column, j] = _I(cut.scales[j, column])
                shifts[first + column, j] = cut.shifts[j, column]
            for j in range(32):
                codes[first + column, j] = cut.codes[j, column]


@njit(nogil=True, fastmath=False)
def _weigh(cut: Cut, start: int, length: int, mean: Floats, has_importance: bool) -> None:
    for i in range(length):
        x = load(cut.x, start + i)
        if has_importance:
            weight = load(cut.importance, start + i) * square_root(mean + x * x)
        else:
            weight = x * x
        store(cut.weights, i, weight)


@njit(nogil=True, fastmath=False)
def _fit_sub_block(
    cut: Cut, start: int, length: int, negligible: np.float32, lists: Neighbours
) -> Floats:
    """The scale of the sub-block; sets its codes and shifts."""
    peak = absolute(load(cut.x, start))
    for i in range(1, length):
        size = absolute(load(cut.x, start + i))
        peak = select(peak > size, peak, size)
    _rank(cut, start, length)
    _add_up(cut, start, length)
    if length == 32:
        scale, found = _best_cut(cut)
    else:
        scale, found = _best_cut_of_halves(cut)
    is_zero = (peak < negligible) | (found < _I(0))
    is_flipped = scale < _ZERO
    scale = select(is_flipped, scale * -_ONE, scale)
    shift = (found >> _I(16)) & _I(3)
    shift = select(is_flipped, _I(3) - shift, shift)
    _set_corners(cut, start, length, found, is_flipped)
    scale = _move_to_points(cut, start, length, scale, shift, lists)
    for row in range(start // 8, (start + length) // 8):
        store(cut.codes, row, select(is_zero, splat(_I(0)), load(cut.codes, row)))
    store(cut.shifts, start // length, select(is_zero, splat(_I(0)), shift))
    return select(is_zero, splat(_ZERO), scale)


@njit(nogil=True, fastmath=False)
def _rank(cut: Cut, start: int, length: int) -> None:
    """The place of each element in order of size; equal ones keep their order."""
    for j in range(length):
        x, rank = load(cut.x, start + j), splat(_I(length - 1))
        for i in range(length):
            other = load(cut.x, start + i)
            if i < j:
                rank = select(other > x, rank - _I(1), rank)
            elif i > j:
                rank = select(other < x, rank, rank - _I(1))
        store(cut.ranks, j, rank)


@njit(nogil=True, fastmath=False)
def _add_up(cut: Cut, start: int, length: int) -> None:
    """``sums_x`` and ``sums_w``, whole (32 elements) or for each half on its own (16)."""
    half = 32 if length == 32 else 8
    for row in range(34):
        store(cut.sums_x, row, splat(_ZERO))
        store(cut.sums_w, row, splat(_ZERO))
    for j in range(length):
        base = (length + 1) * (j // half) + 1
        for column in range(LANES):
            row = base + cut.ranks[j, column]
            cut.sums_x[row, column] = cut.weights[j, column] * cut.x[start + j, column]
            cut.sums_w[row, column] = cut.weights[j, column]
    for base in range(0, (length // half) * (length + 1), length + 1):
        for row in range(base + 1, base + length + 1):
            store(cut.sums_x, row, load(cut.sums_x, row - 1) + load(cut.sums_x, row))
            store(cut.sums_w, row, load(cut.sums_w, row - 1) + load(cut.sums_w, row))


@njit(nogil=True, fastmath=False)
def _best_cut(cut: Cut) -> tuple[Floats, Ints]:
    """(scale, low count | low and middle count << 8 | shift << 16, or -1) for 32 elements."""
    total_x, total_w = load(cut.sums_x, 32), load(cut.sums_w, 32)
    for i in range(33):
        rest_x = total_x - load(cut.sums_x, i)
        rest_w = total_w - load(cut.sums_w, i)
        store(cut.tails, 4 * i, rest_x * _UP[2])
        store(cut.tails, 4 * i + 1, rest_w * _UP[2] * _UP[2])
        store(cut.tails, 4 * i + 2, rest_x * _DOWN[2])
        store(cut.tails, 4 * i + 3, rest_w * _DOWN[2] * _DOWN[2])
    best, scale, found = splat(-F32_MAX), splat(_ZERO), splat(_I(-1))
    for i in range(33):
        head_x, head_w = load(cut.sums_x, i), load(cut.sums_w, i)
        up_x, up_w = head_x * _UP[0], head_w * _UP[0] * _UP[0]
        down_x, down_w = head_x * _DOWN[0], head_w * _DOWN[0] * _DOWN[0]
        for j in range(i, 33):
            # the middle level is 1/8 or -1/8: one term and its negative
            middle_x = (load(cut.sums_x, j) - head_x) * _UP[1]
            middle_w = (load(cut.sums_w, j) - head_w) * _UP[1] * _UP[1]
            sum_qx = up_x + middle_x + load(cut.tails, 4 * j)
            sum_qq = up_w + middle_w + load(cut.tails, 4 * j + 1)
            down_qx = down_x - middle_x + load(cut.tails, 4 * j + 2)
            down_qq = down_w + middle_w + load(cut.tails, 4 * j + 3)
            is_better = (sum_qq > _ZERO) & (sum_qx * sum_qx > best * sum_qq)
            is_down = (down_qq > _ZERO) & (down_qx * down_qx > best * down_qq)
            if any_lane(is_better | is_down):
                scale = select(is_better, sum_qx / sum_qq, scale)
                best = select(is_better, scale * sum_qx, best)
                found = select(is_better, splat(_I(i | j << 8)), found)
                is_down = (down_qq > _ZERO) & (down_qx * down_qx > best * down_qq)
                scale = select(is_down, down_qx / down_qq, scale)
                best = select(is_down, scale * down_qx, best)
                found = select(is_down, splat(_I(i | j << 8 | 3 << 16)), found)
    return scale, found


@njit(nogil=True, fastmath=False, forceinline=True)
def _half_sums(cut: Cut, base: int, i: int, j: int, up: bool) -> tuple[Floats, Floats]:
    """Sums of q * x and q * q in a half whose sums begin at row ``base``, for one cut and shift."""
    high = _UP[2] if up else _DOWN[2]
    first = _F(0.75) if up else _F(1.25)  # low**2 - middle**2
    second = _F(-1.25) if up else _F(-0.75)  # middle**2 - high**2
    heads = load(cut.sums_x, base + i) + load(cut.sums_x, base + j)
    sum_qx = load(cut.sums_x, base + 16) * high - heads
    sum_qq = load(cut.sums_w, base + 16) * high * high
    sum_qq = sum_qq + load(cut.sums_w, base + i) * first + load(cut.sums_w, base + j) * second
    return sum_qx, sum_qq


@njit(nogil=True, fastmath=False)
def _best_cut_of_halves(cut: Cut) -> tuple[Floats, Ints]:
    """As ``_best_cut``, for 16 elements whose halves are shifted each on its own."""
    best, scale, found = splat(-F32_MAX), splat(_ZERO), splat(_I(-1))
    for i in range(17):
        for j in range(i, 17):
            first_up_x, first_up_w = _half_sums(cut, 0, i, j, True)
            first_down_x, first_down_w = _half_sums(cut, 0, i, j, False)
            second_up_x, second_up_w = _half_sums(cut, 17, i, j, True)
            second_down_x, second_down_w = _half_sums(cut, 17, i, j, False)
            for shift in range(4):
                sum_qx = first_down_x if shift & 2 else first_up_x
                sum_qq = first_down_w if shift & 2 else first_up_w
                sum_qx = sum_qx + (second_down_x if shift & 1 else second_up_x)
                sum_qq = sum_qq + (second_down_w if shift & 1 else second_up_w)
                is_better = (sum_qq > _ZERO) & (sum_qx * sum_qx > best * sum_qq)
                if any_lane(is_better):
                    scale = select(is_better, sum_qx / sum_qq, scale)
                    best = select(is_better, scale * sum_qx, best)
                    found = select(is_better, splat(_I(i | j << 8 | shift << 16)), found)
    return scale, found


@njit(nogil=True, fastmath=False)
def _set_corners(cut: Cut, start: int, length: int, found: Ints, is_flipped: Mask) -> None:
    low, middle = found & _I(255), (found >> _I(8)) & _I(255)
    """Codes of the levels that a cut gives; 2 - level where the scale came out negative."""
    for row in range(length // 8):
        code = splat(_I(0))
        for i in range(8):
            rank = load(cut.ranks, 8 * row + i)
            level = select(rank < low, splat(_I(0)), splat(_I(1)))
            level = select(rank < middle, level, splat(_I(2)))
            level = select(is_flipped, _I(2) - level, level)
            code = code | level << _I(2 * i)
        store(cut.corners, start // 8 + row, code)


@njit(nogil=True, fastmath=False)
def _move_to_points(
    cut: Cut, start: int, length: int, scale: Floats, shift: Ints, lists: Neighbours
) -> Floats:
    """Set the codes of a sub-block to points; returns the scale, fitted anew where one moved."""
    has_moved = splat(_ZERO) != _ZERO
    sum_qx, sum_qq = splat(_ZERO), splat(_ZERO)
    groups = length // 8
    store(cut.scale, 0, scale)
    for k in range(groups):
        row = start // 8 + k
        up = _shift_of(shift, k, groups)
        store(cut.up, 0, up)
        for column in range(LANES):
            code = cut.corners[row, column]
            run = lists.runs[code]
            if run != 0:
                q = load(cut.levels, 0) + cut.up[0, column]
                s = cut.scale[0, column]
                code = nearest_point(
                    lists, run, s, q, cut.x, start + 8 * k, cut.weights, 8 * k, column, 8
                )
            cut.codes[row, column] = code
        code = load(cut.codes, row)
        has_moved = has_moved | (code != load(cut.corners, row))
        for i in range(8):
            weighted, q = _weighted(cut, code, up, 8 * k + i)
            sum_qx = sum_qx + weighted * load(cut.x, start + 8 * k + i)
            sum_qq = sum_qq + weighted * q
    is_fitted = has_moved & (sum_qx > _ZERO) & (sum_qq > _ZERO)
    return select(is_fitted, sum_qx / sum_qq, scale)


@njit(nogil=True, fastmath=False, forceinline=True)
def _shift_of(shift: Ints, k: int, groups: int) -> Floats:
    """1/8 or -1/8 for group ``k`` of a sub-block."""
    bit = _I(2) if 2 * k < groups else _I(1)
    return select((shift & bit) != _I(0), splat(-_SHIFT), splat(_SHIFT))


@njit(nogil=True, fastmath=False, forceinline=True)
def _weighted(cut: Cut, code: Ints, up: Floats, row: int) -> tuple[Floats, Floats]:
    """(weight * q, q) of element ``row`` of the sub-block, from the code of its group."""
    q = to_floats((code >> _I(2 * (row % 8))) & _I(3)) - _ONE + up
    return load(cut.weights, row) * q, q


@njit(nogil=True, fastmath=False)
def _finish(cut: Cut, length: int, mean: Floats, has_importance: bool, peak: Floats) -> None:
    """Quantize the scales; IQ1_M then fits the unit to all elements."""
    unit, is_zero = peak / _F(15), peak == _ZERO
    inverse = _ONE / unit
    sum_qx, sum_qq = splat(_ZERO), splat(_ZERO)
    groups = length // 8
    for j in range(QK_K // length):
        number = nearest_within(_HALF * (inverse * load(cut.scales, j) - _ONE), _ZERO, _F(7))
        number = select(is_zero, splat(_ZERO), number)
        store(cut.scales, j, number)
        shift = select(is_zero, splat(_I(0)), load(cut.shifts, j))
        store(cut.shifts, j, shift)
        if length == 16:
            _weigh(cut, length * j, length, mean, has_importance)
            for k in range(groups):
                code, up = load(cut.codes, groups * j + k), _shift_of(shift, k, groups)
                for i in range(8 * k, 8 * k + 8):
                    q = to_floats((code >> _I(2 * (i % 8))) & _I(3)) - _ONE + up
                    q = q * (number + number + _ONE)
                    weighted = load(cut.weights, i) * q
                    sum_qx = sum_qx + weighted * load(cut.x, length * j + i)
                    sum_qq = sum_qq + weighted * q
    if length == 16:
        unit = select(sum_qq > _ZERO, sum_qx / sum_qq, unit)
    store(cut.scale, 0, select(is_zero, splat(_ZERO), unit))
