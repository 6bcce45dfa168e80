"""The search of IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S, sixteen super-blocks at a time.

``x = sign * scale * q`` with one scale per sub-block and q, the coordinates ``2 * level + 1``, from
a codebook, eight or four at a time. Inverse scales are tried one after the other: magnitudes are
rounded to levels, groups that land outside the codebook move to the best near point
(:mod:`.neighbours`), and the best fit gives the scale. The types differ in the numbers of
:class:`Rules`. Every lane performs the operations of ``quantize_row_iq*_impl`` of ggml-quants.c.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zenconvert.formats.gguf.blocks.lanes import (
    LANES,
    Floats,
    Mask,
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
from zenconvert.formats.gguf.blocks.neighbours import (
    Neighbours,
    nearest_point,
)
from zenconvert.formats.gguf.blocks.rounding import nearest_within
from zenconvert.formats.gguf.blocks.search_affine import search_positive
from zenconvert.formats.gguf.blocks.superblocks import QK_K, read_blocks

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
    """Of the codebook."""
    top: np.float32
    """The highest level; its coordinate is 2 * top + 1."""
    tries: int
    """Inverse scales are tried from -tries * step to tries * step around the plain one."""
    step: np.float32
    negligible: np.float32
    """Sub-blocks whose largest magnitude is less become zero."""
    spread: np.float32
    """The mean square of the super-block counts so many times in the weights."""
    plain_spread: np.float32
    """The same in the weights without importance."""
    even_signs: bool
    """Of eight signs an even number is negative, so that seven are stored."""
    descends: bool
    """The tries start from the scale of ``search_positive``, and every fit is refined."""
    refines_all: bool
    """Refining a fit moves the groups whose point was rounded to as well."""
    erases: bool
    """A super-block whose scales are all zero has zeros in place of codes and signs."""


class Fit(NamedTuple):
    """Scratch memory: f32[rows, 16] or i32[rows, 16], a lane per super-block."""

    x: NDArray[np.float32]
    """The weights of the super-block, [256]."""
    importance: NDArray[np.float32]
    """[256]."""
    sizes: NDArray[np.float32]
    """Magnitudes in the sub-block, [32], as the following four. One may be negative."""
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
    """Codes before the move to a point, one per group: [8], as the following three."""
    tried: NDArray[np.int32]
    best: NDArray[np.int32]
    moved: NDArray[np.int32]
    """1 where the best code is not what was rounded to."""
    scales: NDArray[np.float32]
    """Of the sub-blocks, [16]."""
    codes: NDArray[np.int32]
    """Of all groups, [64]."""
    signs: NDArray[np.int32]
    """Bits of all runs of eight, [32]."""


@njit(nogil=True, fastmath=False)
def _ints(rows: int) -> NDArray[np.int32]:
    return scratch(rows).view(np.int32)


@njit(nogil=True, fastmath=False)
def _new_fit() -> Fit:
    return Fit(
        scratch(QK_K),
        scratch(QK_K),
        scratch(32),
        scratch(32),
        scratch(32),
        scratch(32),
        scratch(32),
        scratch(1),
        scratch(1),
        _ints(8),
        _ints(8),
        _ints(8),
        _ints(8),
        scratch(16),
        _ints(64),
        _ints(32),
    )


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def search_lattice(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    lists: Neighbours,
    rules: Rules,
    codes: NDArray[np.int32],
    signs: NDArray[np.int32],
    scales: NDArray[np.int32],
    d: NDArray[np.float32],
) -> None:
    """Fit ``blocks`` f32[n, 256], with ``importance`` f32[blocks of a row, 256] if not empty.

    Fills ``codes`` [n, 256 / dimensions] of points, ``signs`` [n, 32] as bits, ``scales``
    [n, 256 / length] from 0 to 15 and the super-blocks' unit of scale ``d`` [n].
    """
    fit = _new_fit()
    levels = 4 if rules.dimensions == 8 else 8
    for i in range(LANES):
        fit.coordinates[0, i] = 2 * (i % levels) + 1
    count = blocks.shape[0]
    for first in range(0, count, LANES):
        read_blocks(blocks, first, count, fit.x)
        if importance.shape[0] > 0:
            read_blocks(importance, first, importance.shape[0], fit.importance)
        squares = splat(_ZERO)
        for i in range(QK_K):
            squares = squares + load(fit.x, i) * load(fit.x, i)
        peak = splat(_ZERO)
        for start in range(0, QK_K, rules.length):
            _weigh(fit, start, rules, squares, importance.shape[0] > 0)
            scale = _fit_sub_block(fit, start, lists, rules)
            store(fit.scales, start // rules.length, scale)
            peak = select(peak > scale, peak, scale)
        _write(fit, first, rules, peak, codes, signs, scales, d)


@njit(nogil=True, fastmath=False)
def _weigh(fit: Fit, start: int, rules: Rules, squares: Floats, has_importance: bool) -> None:
    """Weights, magnitudes and signs of the sub-block at ``start``."""
    mean = rules.spread * squares / _F(QK_K)
    for i in range(rules.length):
        x = load(fit.x, start + i)
        if has_importance:
            weight = load(fit.importance, start + i) * square_root(mean + x * x)
        else:
            weight = rules.plain_spread * mean + x * x
        store(fit.weights, i, weight)
        store(fit.roots, i, square_root(weight))
    for row in range(0, rules.length, 8):
        bits, odd = splat(_I(0)), splat(_I(0))
        least, where = splat(_ZERO), splat(_I(0))
        for i in range(8):
            x = load(fit.x, start + row + i)
            is_negative = x < _ZERO
            size = select(is_negative, x * -_ONE, x)
            store(fit.sizes, row + i, size)
            bits = select(is_negative, bits | _I(1 << i), bits)
            odd = select(is_negative, _I(1) - odd, odd)
            loss = load(fit.weights, row + i) * size * size
            is_least = loss < least
            least = select(is_least, loss, least) if i else loss
            where = select(is_least, splat(_I(1 << i)), where) if i else splat(_I(1))
        if rules.even_signs:
            where = select(odd != _I(0), where, splat(_I(0)))
            for i in range(8):
                is_flipped = (where & _I(1 << i)) != _I(0)
                size = load(fit.sizes, row + i)
                store(fit.sizes, row + i, select(is_flipped, size * -_ONE, size))
            bits = (bits | where) - (bits & where)
        store(fit.signs, (start + row) // 8, bits)
    for i in range(rules.length):
        store(fit.products, i, load(fit.weights, i) * load(fit.sizes, i))


@njit(nogil=True, fastmath=False)
def _fit_sub_block(fit: Fit, start: int, lists: Neighbours, rules: Rules) -> Floats:
    """The scale of the sub-block; sets its codes and corrects its signs."""
    groups = rules.length // rules.dimensions
    reach = _F(rules.top + rules.top + _ONE)
    peak = load(fit.sizes, 0)
    for i in range(1, rules.length):
        size = load(fit.sizes, i)
        peak = select(peak > size, peak, size)
    is_zero = (peak < rules.negligible) | (peak == _ZERO)
    scale = peak / reach
    if rules.descends:
        most = _I(rules.top + _F(2))
        scale = search_positive(fit.sizes, fit.weights, rules.length, most, fit.levels)
        peak = scale * _F(rules.top + _ONE)
        is_zero = is_zero | (peak < _ZERO) | (peak == _ZERO)
    for k in range(groups):
        store(fit.best, k, splat(_I(0)))
        store(fit.moved, k, splat(_I(1 if rules.refines_all else 0)))
    best = splat(_ZERO)
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
                moved = select(code != load(fit.corners, k), splat(_I(1)), splat(_I(0)))
                store(fit.best, k, select(is_better, code, load(fit.best, k)))
                store(fit.moved, k, select(is_better, moved, load(fit.moved, k)))
    scale = _refine(fit, lists, rules, scale)
    is_flipped = scale < _ZERO
    for k in range(groups):
        code = select(is_zero, splat(_I(0)), load(fit.best, k))
        store(fit.codes, start // rules.dimensions + k, code)
    for row in range(start // 8, (start + rules.length) // 8):
        bits = load(fit.signs, row)
        bits = select(is_flipped, _I(255) - bits, bits)
        store(fit.signs, row, select(is_zero, splat(_I(0)), bits))
    scale = select(is_flipped, scale * -_ONE, scale)
    return select(is_zero, splat(_ZERO), scale)


@njit(nogil=True, fastmath=False)
def _try(fit: Fit, lists: Neighbours, rules: Rules, inverse: Floats, scale: Floats) -> None:
    """Round to the corners and move to the tried codes."""
    dimensions = rules.dimensions
    weight_of_level = _F(rules.top + _ONE)
    if dimensions == 8:
        weight_of_level = _F(4)
    store(fit.scale, 0, scale)
    q = load(fit.coordinates, 0)
    for k in range(rules.length // dimensions):
        row = dimensions * k
        code, place = splat(_ZERO), _ONE
        for i in range(dimensions):
            size = load(fit.sizes, row + i)
            level = nearest_within(_HALF * (inverse * size - _ONE), _ZERO, rules.top)
            code = code + level * place
            place = _F(place * weight_of_level)
        store(fit.corners, k, to_ints(code))
        for lane in range(LANES):
            corner = fit.corners[k, lane]
            run = lists.runs[corner]
            if run != 0:
                s = fit.scale[0, lane]
                if dimensions == 8:
                    corner = nearest_point(lists, run, s, q, fit.sizes, fit.roots, row, lane, 8)
                else:
                    corner = nearest_point(lists, run, s, q, fit.sizes, fit.roots, row, lane, 4)
            fit.tried[k, lane] = corner


@njit(nogil=True, fastmath=False)
def _sums(fit: Fit, codes: NDArray[np.int32], rules: Rules) -> tuple[Floats, Floats]:
    """Weighted sums of coordinate * magnitude and coordinate * coordinate."""
    sum_qx, sum_qq = splat(_ZERO), splat(_ZERO)
    bits = _I(2) if rules.dimensions == 8 else _I(3)
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
    """Round once more under the scale found, and fit the scale to that."""
    groups = rules.length // rules.dimensions
    is_refined = splat(_I(1 if rules.descends else 0)) != _I(0)
    for k in range(groups):
        is_refined = is_refined | (load(fit.moved, k) != _I(0))
    is_refined = is_refined & (scale > _ZERO)
    if not any_lane(is_refined):
        return scale
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
    unit = peak / _F(31)
    is_zero = peak == _ZERO
    store(fit.scale, 0, select(is_zero, splat(_ZERO), unit))
    inverse = _ONE / unit
    for j in range(scales.shape[1]):
        number = nearest_within(_HALF * (inverse * load(fit.scales, j) - _ONE), _ZERO, _F(15))
        number = select(is_zero, splat(_ZERO), number)
        store(fit.scales, j, number)
    for row in range(codes.shape[1]):
        code = load(fit.codes, row)
        store(fit.codes, row, select(is_zero, splat(_I(0)), code) if rules.erases else code)
    for row in range(32):
        bits = load(fit.signs, row)
        store(fit.signs, row, select(is_zero, splat(_I(0)), bits) if rules.erases else bits)
    for lane in range(min(LANES, codes.shape[0] - first)):
        d[first + lane] = fit.scale[0, lane]
        for j in range(scales.shape[1]):
            scales[first + lane, j] = _I(fit.scales[j, lane])
        for row in range(codes.shape[1]):
            codes[first + lane, row] = fit.codes[row, lane]
        for row in range(32):
            signs[first + lane, row] = fit.signs[row, lane]
