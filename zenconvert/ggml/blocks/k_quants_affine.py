"""Kernels of Q2_K, Q4_K, Q5_K: ``x = (d * scale) * code - dmin * minimum``.

Scale and minimum of a sub-block are codes of 4 bits (Q2_K, sub-blocks of 16) or 6 bits (32) in
units of the super-block's float16 d and dmin. Source: ``quantize_row_q2_K_ref`` and its like for
encoding without importance, ``quantize_row_q2_K_impl`` with it. Block layouts: :mod:`.k_decoders`.

Every kernel takes ``weights`` f32[n, 256], ``importance`` f32[blocks of a row, 256] or None, and
``out`` u8[n, type_size].
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.compiling import njit
from zenconvert.ggml.blocks.lanes import (
    LANES,
    Floats,
    absolute,
    load,
    select,
    splat,
    square_root,
    store,
    store_bytes,
    to_floats,
    to_ints,
)
from zenconvert.ggml.blocks.rounding import at_most, nearest
from zenconvert.ggml.blocks.search_affine import Sweep, search_affine, search_positive
from zenconvert.ggml.blocks.superblocks import (
    Tile,
    code,
    mean_square,
    new_tile,
    read_blocks,
    requantize,
    weigh_by_importance,
    write_blocks,
    write_half,
)

_F: Final = np.float32
_I: Final = np.int32
_ZERO: Final = np.float32(0)
_BYTE: Final = np.int32(0xFF)
_NIBBLE: Final = np.int32(0xF)
_SIX_BITS: Final = np.int32(0x3F)
_Q2_SWEEP: Final = Sweep(_F(3), _F(-0.5), _F(0.1), 15, absolute_error=True)
_Q2_WEIGHTED_SWEEP: Final = Sweep(_F(3), _F(-0.9), _F(0.05), 36)
_Q4_SWEEP: Final = Sweep(_F(15), _F(-1), _F(0.1), 20)
_Q4_WEIGHTED_SWEEP: Final = Sweep(_F(15), _F(-0.9), _F(0.05), 36)
_Q5_SWEEP: Final = Sweep(_F(31), _F(-0.5), _F(0.1), 15)
_Q5_WEIGHTED_SWEEP: Final = Sweep(_F(31), _F(-0.9), _F(0.05), 36)


@njit(nogil=True, fastmath=False)
def _search_weighted(tile: Tile, n: int, mean: Floats, sweep: Sweep) -> None:
    """Scales, minima and sums of weights of all sub-blocks of ``n``, with importance."""
    for j in range(256 // n):
        store(tile.totals, j, weigh_by_importance(tile, n * j, n, mean))
        scale, minimum = search_affine(tile, n * j, n, sweep)
        store(tile.scales, j, scale)
        store(tile.minima, j, minimum)


@njit(nogil=True, fastmath=False)
def _search_32(tile: Tile, sweep: Sweep) -> None:
    """The same for Q4_K and Q5_K without importance: large weights count more."""
    for j in range(8):
        squares = splat(_ZERO)
        for i in range(32 * j, 32 * j + 32):
            x = load(tile.x, i)
            squares = squares + x * x
        root = square_root(squares / _F(32))
        for i in range(32):
            store(tile.weights, i, root + absolute(load(tile.x, 32 * j + i)))
        scale, minimum = search_affine(tile, 32 * j, 32, sweep)
        store(tile.scales, j, scale)
        store(tile.minima, j, minimum)


@njit(nogil=True, fastmath=False)
def _search_16(tile: Tile, sweep: Sweep) -> None:
    """The same for Q2_K."""
    for j in range(16):
        for i in range(16):
            store(tile.weights, i, absolute(load(tile.x, 16 * j + i)))
        scale, minimum = search_affine(tile, 16 * j, 16, sweep)
        store(tile.scales, j, scale)
        store(tile.minima, j, minimum)


@njit(nogil=True, fastmath=False)
def _round_by_peak(
    values: NDArray[np.float32], n: int, most: np.float32, codes: NDArray[np.float32]
) -> Floats:
    """Codes of scales or minima without importance, the largest ``most``; returns the unit.

    Codes are kept modulo 256, C's byte: a value can be negative by rounding.
    """
    peak = splat(_ZERO)
    for j in range(n):
        value = load(values, j)
        peak = select(value > peak, value, peak)
    inverse = select(peak > _ZERO, most / peak, splat(_ZERO))
    for j in range(n):
        store(codes, j, to_floats(nearest(inverse * load(values, j)) & _BYTE))
    return peak / most


@njit(nogil=True, fastmath=False)
def _pack_six_bits(tile: Tile, largest: np.int32) -> None:
    """Eight scales and eight minima into twelve bytes, as ``get_scale_min_k4`` reads them."""
    for j in range(8):
        scale = at_most(to_ints(load(tile.scale_codes, j)), largest)
        minimum = at_most(to_ints(load(tile.minimum_codes, j)), largest)
        if j < 4:
            store(tile.packed, j, scale)
            store(tile.packed, j + 4, minimum)
        else:
            high_scale, high_minimum = scale >> _I(4) << _I(6), minimum >> _I(4) << _I(6)
            store(tile.packed, j + 4, (scale & _NIBBLE) | (minimum & _NIBBLE) << _I(4))
            store(tile.packed, j - 4, (load(tile.packed, j - 4) | high_scale) & _BYTE)
            store(tile.packed, j, (load(tile.packed, j) | high_minimum) & _BYTE)


@njit(nogil=True, fastmath=False)
def _unpack_six_bits(tile: Tile, j: int) -> tuple[Floats, Floats]:
    """(scale, minimum) that a reader finds for sub-block ``j``."""
    if j < 4:
        scale = load(tile.packed, j) & _SIX_BITS
        minimum = load(tile.packed, j + 4) & _SIX_BITS
    else:
        low = load(tile.packed, j + 4)
        scale = (low & _NIBBLE) | load(tile.packed, j - 4) >> _I(6) << _I(4)
        minimum = low >> _I(4) | load(tile.packed, j) >> _I(6) << _I(4)
    return to_floats(scale), to_floats(minimum)


@njit(nogil=True, fastmath=False)
def _finish_32(tile: Tile, d: Floats, dmin: Floats, largest: np.int32, most: np.float32) -> None:
    """Header and final codes of Q4_K and Q5_K. Codes above ``largest`` are cut before packing."""
    d, dmin = write_half(tile, 0, d), write_half(tile, 2, dmin)
    _pack_six_bits(tile, largest)
    for j in range(12):
        store_bytes(tile.octets, 4 + j, load(tile.packed, j))
    for j in range(8):
        scale, minimum = _unpack_six_bits(tile, j)
        requantize(tile, 32 * j, 32, d * scale, dmin * minimum, _ZERO, most)


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def q2_k(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode to blocks of 84 bytes."""
    tile = new_tile(out.shape[1])
    for first in range(0, weights.shape[0], LANES):
        read_blocks(weights, first, weights.shape[0], tile.x)
        if importance is None:
            _search_16(tile, _Q2_SWEEP)
            d = _round_by_peak(tile.scales, 16, _F(15), tile.scale_codes)
            dmin = _round_by_peak(tile.minima, 16, _F(15), tile.minimum_codes)
        else:
            read_blocks(importance, first, importance.shape[0], tile.importance)
            _search_weighted(tile, 16, mean_square(tile, _F(1)), _Q2_WEIGHTED_SWEEP)
            d = search_positive(tile.scales, tile.totals, 16, _I(15), tile.scale_codes)
            dmin = search_positive(tile.minima, tile.totals, 16, _I(15), tile.minimum_codes)
        _write_q2_k(tile, d, dmin)
        write_blocks(tile, out, first)


@njit(nogil=True, fastmath=False)
def _write_q2_k(tile: Tile, d: Floats, dmin: Floats) -> None:
    d, dmin = write_half(tile, 80, d), write_half(tile, 82, dmin)
    for j in range(16):
        scale, minimum = to_ints(load(tile.scale_codes, j)), to_ints(load(tile.minimum_codes, j))
        both = (scale | minimum << _I(4)) & _BYTE
        store_bytes(tile.octets, j, both)
        scale, minimum = to_floats(both & _NIBBLE), to_floats(both >> _I(4))
        requantize(tile, 16 * j, 16, d * scale, dmin * minimum, _ZERO, _F(3))
    for i in range(64):
        row = i // 32 * 128 + i % 32
        low = code(tile, row) | code(tile, row + 32) << _I(2)
        high = code(tile, row + 64) | code(tile, row + 96) << _I(2)
        store_bytes(tile.octets, 16 + i, low | high << _I(4))


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def q4_k(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode to blocks of 144 bytes."""
    tile = new_tile(out.shape[1])
    for first in range(0, weights.shape[0], LANES):
        read_blocks(weights, first, weights.shape[0], tile.x)
        if importance is None:
            _search_32(tile, _Q4_SWEEP)
            d = _round_by_peak(tile.scales, 8, _F(63), tile.scale_codes)
            dmin = _round_by_peak(tile.minima, 8, _F(63), tile.minimum_codes)
            _finish_32(tile, d, dmin, _SIX_BITS, _F(15))
        else:
            read_blocks(importance, first, importance.shape[0], tile.importance)
            _search_weighted(tile, 32, mean_square(tile, _F(2)), _Q4_WEIGHTED_SWEEP)
            d = search_positive(tile.scales, tile.totals, 8, _SIX_BITS, tile.scale_codes)
            dmin = search_positive(tile.minima, tile.totals, 8, _SIX_BITS, tile.minimum_codes)
            _finish_32(tile, d, dmin, _BYTE, _F(15))
        for i in range(128):
            row = i // 32 * 64 + i % 32
            store_bytes(tile.octets, 16 + i, code(tile, row) | code(tile, row + 32) << _I(4))
        write_blocks(tile, out, first)


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def q5_k(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode to blocks of 176 bytes."""
    tile = new_tile(out.shape[1])
    for first in range(0, weights.shape[0], LANES):
        read_blocks(weights, first, weights.shape[0], tile.x)
        if importance is None:
            _search_32(tile, _Q5_SWEEP)
            d = _round_by_peak(tile.scales, 8, _F(63), tile.scale_codes)
            dmin = _round_by_peak(tile.minima, 8, _F(63), tile.minimum_codes)
        else:
            read_blocks(importance, first, importance.shape[0], tile.importance)
            _search_weighted(tile, 32, mean_square(tile, _F(2)), _Q5_WEIGHTED_SWEEP)
            d = search_positive(tile.scales, tile.totals, 8, _SIX_BITS, tile.scale_codes)
            dmin = search_positive(tile.minima, tile.totals, 8, _SIX_BITS, tile.minimum_codes)
        _finish_32(tile, d, dmin, _SIX_BITS, _F(31))
        _write_q5_k_codes(tile)
        write_blocks(tile, out, first)


@njit(nogil=True, fastmath=False)
def _write_q5_k_codes(tile: Tile) -> None:
    for i in range(32):
        fifth_bits = splat(_I(0))
        for pair in range(4):
            low, high = code(tile, 64 * pair + i), code(tile, 64 * pair + 32 + i)
            nibbles = (low & _NIBBLE) | (high & _NIBBLE) << _I(4)
            store_bytes(tile.octets, 48 + 32 * pair + i, nibbles)
            bits = low >> _I(4) | high >> _I(4) << _I(1)
            fifth_bits = fifth_bits | bits << _I(2 * pair)
        store_bytes(tile.octets, 16 + i, fifth_bits)
