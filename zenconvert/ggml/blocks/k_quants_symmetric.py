"""Kernels of Q3_K and Q6_K: ``x = (d * scale) * (code - half)``, sub-blocks of 16.

The scales are signed codes of 6 bits (Q3_K) or 8 bits (Q6_K) in units of the super-block's float16
d. Source: ``quantize_row_q3_K_ref`` and its like for encoding without importance,
``quantize_row_q3_K_impl`` with it. Block layouts: :mod:`.k_decoders`.

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
    store,
    store_bytes,
    to_floats,
    to_ints,
)
from zenconvert.ggml.blocks.rounding import at_most, nearest, nearest_within
from zenconvert.ggml.blocks.search_symmetric import search_descent, search_symmetric
from zenconvert.ggml.blocks.superblocks import (
    QK_K,
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
_ONE: Final = np.float32(1)
_Q3_HALF: Final = np.float32(4)
_Q6_HALF: Final = np.float32(32)
_NEGLIGIBLE: Final = np.float32(1e-15)
_NIBBLE: Final = np.int32(0xF)


@njit(nogil=True, fastmath=False)
def _weigh_by_square(tile: Tile, start: int) -> None:
    for i in range(16):
        x = load(tile.x, start + i)
        store(tile.weights, i, x * x)


@njit(nogil=True, fastmath=False)
def _largest_scale(tile: Tile) -> Floats:
    """The first scale of largest magnitude, with its sign."""
    peak = splat(_ZERO)
    for j in range(16):
        scale = load(tile.scales, j)
        peak = select(absolute(scale) > absolute(peak), scale, peak)
    return peak


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def q3_k(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode to blocks of 110 bytes."""
    tile = new_tile(out.shape[1])
    for first in range(0, weights.shape[0], LANES):
        read_blocks(weights, first, weights.shape[0], tile.x)
        if importance is None:
            d = _search_q3_k(tile)
        else:
            read_blocks(importance, first, importance.shape[0], tile.importance)
            d = _search_weighted_q3_k(tile)
        d = write_half(tile, 108, d)
        for j in range(16):
            scale = d * (load(tile.scale_codes, j) - _F(32))
            requantize(tile, 16 * j, 16, scale, splat(_ZERO), -_Q3_HALF, _Q3_HALF - _ONE)
        _write_q3_k(tile)
        write_blocks(tile, out, first)


@njit(nogil=True, fastmath=False)
def _search_q3_k(tile: Tile) -> Floats:
    """Codes and scale codes without importance; returns d. All scales zero: all codes zero."""
    for j in range(16):
        _weigh_by_square(tile, 16 * j)
        scale = search_descent(
            tile.x, 16 * j, tile.weights, 16, _Q3_HALF, tile.products, tile.codes
        )
        store(tile.scales, j, scale)
    peak = _largest_scale(tile)
    is_zero = peak == _ZERO
    inverse = _F(-32) / peak
    for j in range(16):
        # C keeps the code in a signed byte before it cuts off what is outside -32 ... 31.
        top_byte = nearest(inverse * load(tile.scales, j)) << _I(24)
        rounded = nearest_within(to_floats(top_byte) / _F(1 << 24), _F(-32), _F(31)) + _F(32)
        store(tile.scale_codes, j, select(is_zero, splat(_ZERO), rounded))
    return select(is_zero, splat(_ZERO), _ONE / inverse)


@njit(nogil=True, fastmath=False)
def _search_weighted_q3_k(tile: Tile) -> Floats:
    mean = mean_square(tile, _F(2))
    for j in range(16):
        store(tile.totals, j, weigh_by_importance(tile, 16 * j, 16, mean))
        scale = search_symmetric(
            tile.x, 16 * j, tile.weights, 16, _Q3_HALF, tile.products, tile.codes
        )
        store(tile.scales, j, scale)
    return search_symmetric(
        tile.scales, 0, tile.totals, 16, _F(32), tile.products, tile.scale_codes
    )


@njit(nogil=True, fastmath=False)
def _write_q3_k(tile: Tile) -> None:
    for i in range(32):
        third_bits = splat(_I(0))
        for run in range(8):
            third_bits = third_bits | code(tile, 32 * run + i) >> _I(2) << _I(run)
        store_bytes(tile.octets, i, third_bits)
    for i in range(64):
        bits = splat(_I(0))
        for run in range(4):
            bits = bits | (code(tile, i // 32 * 128 + 32 * run + i % 32) & _I(3)) << _I(2 * run)
        store_bytes(tile.octets, 32 + i, bits)
    for j in range(8):
        low, high = to_ints(load(tile.scale_codes, j)), to_ints(load(tile.scale_codes, j + 8))
        store_bytes(tile.octets, 96 + j, (low & _NIBBLE) | (high & _NIBBLE) << _I(4))
    for j in range(4):
        bits = splat(_I(0))
        for run in range(4):
            bits = bits | to_ints(load(tile.scale_codes, 4 * run + j)) >> _I(4) << _I(2 * run)
        store_bytes(tile.octets, 104 + j, bits)


@njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def q6_k(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    """Encode to blocks of 210 bytes."""
    tile = new_tile(out.shape[1])
    for first in range(0, weights.shape[0], LANES):
        read_blocks(weights, first, weights.shape[0], tile.x)
        if importance is not None:
            read_blocks(importance, first, importance.shape[0], tile.importance)
        for j in range(16):
            if importance is None:
                _weigh_by_square(tile, 16 * j)
            else:
                for i in range(16):
                    store(tile.weights, i, load(tile.importance, 16 * j + i))
            scale = search_symmetric(
                tile.x, 16 * j, tile.weights, 16, _Q6_HALF, tile.products, tile.codes
            )
            store(tile.scales, j, scale)
        _finish_q6_k(tile)
        write_blocks(tile, out, first)


@njit(nogil=True, fastmath=False)
def _finish_q6_k(tile: Tile) -> None:
    """Scales, final codes and their bytes; blocks of negligible scales become zero bytes."""
    peak = _largest_scale(tile)
    is_zero = absolute(peak) < _NEGLIGIBLE
    inverse = _F(-128) / peak
    d = write_half(tile, 208, select(is_zero, splat(_ZERO), _ONE / inverse))
    for j in range(16):
        scale = at_most(nearest(inverse * load(tile.scales, j)), _I(127))
        scale = select(is_zero, splat(_I(0)), scale)
        store_bytes(tile.octets, 192 + j, scale)
        scale = d * to_floats(scale)
        requantize(tile, 16 * j, 16, scale, splat(_ZERO), -_Q6_HALF, _Q6_HALF - _ONE)
    for i in range(QK_K):
        store(tile.codes, i, select(is_zero, splat(_ZERO), load(tile.codes, i)))
    for i in range(64):
        row = i // 32 * 128 + i % 32
        at = i // 32 * 64 + i % 32
        high_bits = splat(_I(0))
        for run in range(2):
            low, high = code(tile, row + 32 * run), code(tile, row + 32 * run + 64)
            nibbles = (low & _NIBBLE) | (high & _NIBBLE) << _I(4)
            store_bytes(tile.octets, at + 32 * run, nibbles)
            bits = low >> _I(4) | high >> _I(4) << _I(4)
            high_bits = high_bits | bits << _I(2 * run)
        store_bytes(tile.octets, 128 + i, high_bits)
