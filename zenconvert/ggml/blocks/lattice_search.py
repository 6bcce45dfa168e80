"""The search of IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S, sixteen super-blocks at a time.

``x = sign * scale * q`` with one scale per sub-block and q, the coordinates ``2 * level + 1``, from
a codebook, eight or four at a time. Inverse scales are tried one after the other: magnitudes are
rounded to levels, groups that land on a corner that is no point of the codebook move to the best
near point (:mod:`.neighbours`), and the try that fits best gives the scale. The types differ in the
:class:`Rules`. Every lane performs the operations of ``quantize_row_iq*_impl`` of ggml-quants.c.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.lanes import (
    LANES,
    Floats,
    Ints,
    any_lane,
    load,
    scratch,
    select,
    splat,
    square_root,
    store,
    to_floats,
    to_ints,
)
from zenconvert.ggml.blocks.neighbours import Neighbours, nearest_point
from zenconvert.ggml.blocks.rounding import nearest_within
from zenconvert.ggml.blocks.search_affine import search_positive
from zenconvert.ggml.blocks.superblocks import QK_K, read_blocks

_F: Final = np.float32
_I: Final = np.int32
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)


class Rules(NamedTuple):
    """What distinguishes the types."""

    length: int
    """Elements of a sub-block."""
    dimensions: int
    """Of the codebook: 8 or 4."""
    top: np.float32
    """The highest level; its coordinate is 2 * top + 1."""
    tries: int
    """Inverse scales from -tries * step to tries * step around the plain one are tried."""
    step: np.float32
    negligible: np.float32
    """Sub-blocks whose largest magnitude is less become zero."""
    spread: np.float32
    """The mean square of the super-block counts so many times in the weights."""
    plain_spread: np.float32
    """And so many times that in the weights without importance."""
    even_signs: bool
    """Of eight signs an even number is negative, so that seven need to be stored."""
    descends: bool
    """The plain scale is that of ``search_positive``, and every fit is refined."""
    refines_all: bool
    """Refining a fit rounds all groups again, not only those that moved to a near point."""
    erases: bool
    """A super-block whose scales are all zero keeps no codes and no signs."""


class Fit(NamedTuple):
    """Scratch memory: f32[rows, 16] or i32[rows, 16], a lane per super-block."""

    x: NDArray[np.float32]
    """The weights of the super-block, [256]."""
    importance: NDArray[np.float32]
    """[256]."""
    sizes: NDArray[np.float32]
    """Magnitudes in the sub-block, [32], as the following ones. ``even_signs`` negates some."""
    weights: NDArray[np.float32]
    roots: NDArray[np.float32]
    """Square roots of the weights."""
    products: NDArray[np.float32]
    """Weight times magnitude."""
    levels: NDArray[np.float32]
    """For ``search_positive``."""
    coordinates: NDArray[np.float32]
    """Of the levels, over and over, [1]."""
    scale: NDArray[np.float32]
    """The scale that is tried, [1]."""
    corners: NDArray[np.int32]
    """Codes that were rounded to, one per group: [8], as the following ones."""
    tried: NDArray[np.int32]
    """Codes of points for them."""
    best: NDArray[np.int32]
    moved: NDArray[np.int32]
    """1 where the best code is not what was rounded to."""
    scales: NDArray[np.float32]
    """Of the sub-blocks, [16]."""
    codes: NDArray[np.int32]
    """Of all groups, [64]."""
    signs: NDArray[np.int32]
    """Bits of all runs of eight, [32]."""


def new_fit(rules: Rules) -> Fit:
    """Memory for one call of :func:`search_lattice`."""
    rows = (QK_K, QK_K, 32, 32, 32, 32, 32, 1, 1, 8, 8, 8, 8, 16, 64, 32)
    fit = Fit(*(scratch.py_func(count) for count in rows))
    fit.coordinates[0] = 2 * (np.arange(LANES) % (4 if rules.dimensions == 8 else 8)) + 1
    ints = ("corners", "tried", "best", "moved", "codes", "signs")
    return fit._replace(**{name: getattr(fit, name).view(np.int32) for name in ints})


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def search_lattice(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    lists: Neighbours,
    rules: Rules,
    fit: Fit,
    codes: NDArray[np.int32],
    signs: NDArray[np.int32],
    scales: NDArray[np.int32],
    d: NDArray[np.float32],
) -> None:
    """Fit ``blocks`` f32[n, 256], with ``importance`` f32[blocks of a row, 256] if not empty.

    Fills ``codes`` [n, 256 / dimensions] of points, ``signs`` [n, 32] as bits, ``scales``
    [n, 256 / length] from 0 to 15 and the super-blocks' unit of scale ``d`` [n].
    """
    count = blocks.shape[0]
    for first in range(0, count, LANES):
        read_blocks(blocks, first, count, fit.x)
        if importance.shape[0] > 0:
            read_blocks(importance, first, importance.shape[0], fit.importance)
        squares = splat(_ZERO)
        for i in range(QK_K):
            squares = squares + load(fit.x, i) * load(fit.x, i)
        mean = rules.spread * squares / _F(QK_K)
        peak = splat(_ZERO)
        for start in range(0, QK_K, rules.length):
            _weigh(fit, start, rules, mean, importance.shape[0] > 0)
            scale = _fit_sub_block(fit, start, lists, rules)
            store(fit.scales, start // rules.length, scale)
            peak = select(peak > scale, peak, scale)
        _write(fit, first, rules, peak, codes, signs, scales, d)


@njit(nogil=True, fastmath=False)
def _weigh(fit: Fit, start: int, rules: Rules, mean: Floats, has_importance: bool) -> None:
    """Weights, magnitudes and signs of the sub-block at ``start``."""
    for i in range(rules.length):
        x = load(fit.x, start + i)
        if has_importance:
            weight = load(fit.importance, start + i) * square_root(mean + x * x)
        else:
            weight = rules.plain_spread * mean + x * x
        store(fit.weights, i, weight)
        store(fit.roots, i, square_root(weight))
        store(fit.sizes, i, select(x < _ZERO, x * -_ONE, x))
    for row in range(0, rules.length, 8):
        bits, is_odd = splat(_I(0)), splat(_I(0))
        for i in range(8):
            is_negative = load(fit.x, start + row + i) < _ZERO
            bits = select(is_negative, bits | _I(1 << i), bits)
            is_odd = select(is_negative, _I(1) - is_odd, is_odd)
        if rules.even_signs:
            bits = _flip_cheapest(fit, row, bits, is_odd)
        store(fit.signs, (start + row) // 8, bits)
    for i in range(rules.length):
        store(fit.products, i, load(fit.weights, i) * load(fit.sizes, i))


@njit(nogil=True, fastmath=False)
def _flip_cheapest(fit: Fit, row: int, bits: Ints, is_odd: Ints) -> Ints:
    """Negate the element of least weight * size**2 of the eight from ``row`` on; new sign bits."""
    size = load(fit.sizes, row)
    least, flipped = load(fit.weights, row) * size * size, splat(_I(1))
    for i in range(1, 8):
        size = load(fit.sizes, row + i)
        loss = load(fit.weights, row + i) * size * size
        flipped = select(loss < least, splat(_I(1 << i)), flipped)
        least = select(loss < least, loss, least)
    flipped = select(is_odd != _I(0), flipped, splat(_I(0)))
    for i in range(8):
        size = load(fit.sizes, row + i)
        is_flipped = (flipped & _I(1 << i)) != _I(0)
        store(fit.sizes, row + i, select(is_flipped, size * -_ONE, size))
    return (bits | flipped) - (bits & flipped)


@njit(nogil=True, fastmath=False)
def _fit_sub_block(fit: Fit, start: int, lists: Neighbours, rules: Rules) -> Floats:
    """The scale of the sub-block; sets its codes and corrects its signs."""
    groups = rules.length // rules.dimensions
    peak = load(fit.sizes, 0)
    for i in range(1, rules.length):
        size = load(fit.sizes, i)
        peak = select(peak > size, peak, size)
    is_zero = (peak < rules.negligible) | (peak == _ZERO)
    scale = peak / _F(rules.top + rules.top + _ONE)
    if rules.descends:
        most = _I(rules.top + _F(2))
        scale = search_positive(fit.sizes, fit.weights, rules.length, most, fit.levels)
        peak = scale * _F(rules.top + _ONE)
        is_zero = is_zero | (peak < _ZERO) | (peak == _ZERO)
    scale = _refine(fit, lists, rules, _best_try(fit, lists, rules, peak, scale))
    for k in range(groups):
        code = select(is_zero, splat(_I(0)), load(fit.best, k))
        store(fit.codes, start // rules.dimensions + k, code)
    is_flipped = scale < _ZERO
    for row in range(start // 8, (start + rules.length) // 8):
        bits = load(fit.signs, row)
        bits = select(is_flipped, _I(255) - bits, bits)
        store(fit.signs, row, select(is_zero, splat(_I(0)), bits))
    scale = select(is_flipped, scale * -_ONE, scale)
    return select(is_zero, splat(_ZERO), scale)


@njit(nogil=True, fastmath=False)
def _best_try(fit: Fit, lists: Neighbours, rules: Rules, peak: Floats, scale: Floats) -> Floats:
    """The fitted scale of the best try, else ``scale``; sets ``best`` and ``moved``."""
    groups = rules.length // rules.dimensions
    for k in range(groups):
        store(fit.best, k, splat(_I(0)))
        store(fit.moved, k, splat(_I(1 if rules.refines_all else 0)))
    best = splat(_ZERO)
    reach = _F(rules.top + rules.top + _ONE)
    for step in range(-rules.tries, rules.tries + 1):
        inverse = _F(reach + _F(_F(step) * rules.step)) / peak
        _try(fit, lists, rules, inverse, _ONE / inverse)
        sum_qx, sum_qq = _sums(fit, fit.tried, rules)
        is_better = (sum_qq > _ZERO) & (sum_qx * sum_qx > best * sum_qq)
        if any_lane(is_better):
            scale = select(is_better, sum_qx / sum_qq, scale)
            best = select(is_better, scale * sum_qx, best)
            for k in range(groups):
                code = load(fit.tried, k)
                has_moved = select(code != load(fit.corners, k), splat(_I(1)), splat(_I(0)))
                store(fit.best, k, select(is_better, code, load(fit.best, k)))
                store(fit.moved, k, select(is_better, has_moved, load(fit.moved, k)))
    return scale


@njit(nogil=True, fastmath=False)
def _try(fit: Fit, lists: Neighbours, rules: Rules, inverse: Floats, scale: Floats) -> None:
    """Round to ``corners`` and find their points, ``tried``."""
    dimensions = rules.dimensions
    base = _F(4) if dimensions == 8 else _F(8)
    store(fit.scale, 0, scale)
    q = load(fit.coordinates, 0)
    for k in range(rules.length // dimensions):
        row = dimensions * k
        corners, place = splat(_ZERO), _ONE
        for i in range(row, row + dimensions):
            scaled = _HALF * (inverse * load(fit.sizes, i) - _ONE)
            corners = corners + nearest_within(scaled, _ZERO, rules.top) * place
            place = _F(place * base)
        store(fit.corners, k, to_ints(corners))
        for column in range(LANES):
            code = fit.corners[k, column]
            run, s = lists.runs[code], fit.scale[0, column]
            if run != 0 and dimensions == 8:
                code = nearest_point(lists, run, s, q, fit.sizes, row, fit.roots, row, column, 8)
            elif run != 0:
                code = nearest_point(lists, run, s, q, fit.sizes, row, fit.roots, row, column, 4)
            fit.tried[k, column] = code


@njit(nogil=True, fastmath=False)
def _sums(fit: Fit, codes: NDArray[np.int32], rules: Rules) -> tuple[Floats, Floats]:
    """Weighted sums of coordinate * magnitude and coordinate * coordinate."""
    sum_qx, sum_qq = splat(_ZERO), splat(_ZERO)
    bits = 2 if rules.dimensions == 8 else 3
    mask = _I((1 << bits) - 1)
    for k in range(rules.length // rules.dimensions):
        code = load(codes, k)
        for i in range(rules.dimensions):
            level = to_floats((code >> _I(bits * i)) & mask)
            q = level + level + _ONE
            row = rules.dimensions * k + i
            sum_qx = sum_qx + load(fit.products, row) * q
            sum_qq = sum_qq + load(fit.weights, row) * q * q
    return sum_qx, sum_qq


@njit(nogil=True, fastmath=False)
def _refine(fit: Fit, lists: Neighbours, rules: Rules, scale: Floats) -> Floats:
    """Round once more under ``scale``, and fit the scale to that."""
    groups = rules.length // rules.dimensions
    is_refined = splat(_I(1 if rules.descends else 0)) != _I(0)
    for k in range(groups):
        is_refined = is_refined | (load(fit.moved, k) != _I(0))
    is_refined = is_refined & (scale > _ZERO)
    _try(fit, lists, rules, _ONE / scale, scale)
    for k in range(groups):
        is_new = is_refined
        if not rules.refines_all:
            is_new = is_new & (load(fit.moved, k) != _I(0))
        store(fit.best, k, select(is_new, load(fit.tried, k), load(fit.best, k)))
    sum_qx, sum_qq = _sums(fit, fit.best, rules)
    return select(is_refined & (sum_qq > _ZERO), sum_qx / sum_qq, scale)


@njit(nogil=True, fastmath=False)
def _write(
    fit: Fit,
    first: int,
    rules: Rules,
    peak: Floats,
    codes: NDArray[np.int32],
    signs: NDArray[np.int32],
    scales: NDArray[np.int32],
    d: NDArray[np.float32],
) -> None:
    """Quantize the scales and copy the lanes of one tile out."""
    unit, is_zero = peak / _F(31), peak == _ZERO
    inverse = _ONE / unit
    store(fit.scale, 0, unit)
    for j in range(scales.shape[1]):
        number = nearest_within(_HALF * (inverse * load(fit.scales, j) - _ONE), _ZERO, _F(15))
        store(fit.scales, j, select(is_zero, splat(_ZERO), number))
    if rules.erases:
        for row in range(codes.shape[1]):
            store(fit.codes, row, select(is_zero, splat(_I(0)), load(fit.codes, row)))
        for row in range(32):
            store(fit.signs, row, select(is_zero, splat(_I(0)), load(fit.signs, row)))
    for column in range(min(LANES, codes.shape[0] - first)):
        d[first + column] = fit.scale[0, column]
        for j in range(scales.shape[1]):
            scales[first + column, j] = _I(fit.scales[j, column])
        for row in range(codes.shape[1]):
            codes[first + column, row] = fit.codes[row, column]
        for row in range(32):
            signs[first + column, row] = fit.signs[row, column]
