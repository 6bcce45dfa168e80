"""Encoders of IQ1_S and IQ1_M, byte for byte as libggml writes them.

:mod:`.ternary_search` finds codes, shifts and scales; here they are packed. Source:
``quantize_row_iq1_*_impl`` in ggml-quants.c; block layouts: :mod:`.iq_decoders`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml.blocks import Encoder
from zenconvert.ggml.blocks.iq_packing import by_block, halves, packed, point_numbers
from zenconvert.ggml.blocks.neighbours import neighbours
from zenconvert.ggml.blocks.superblocks import QK_K
from zenconvert.ggml.blocks.ternary_search import new_cut, search_ternary

_F: Final = np.float32


def _search(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    length: int,
    negligible: np.float32,
) -> tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """(numbers of points u16[n, 32], shifts and scales [n, 256 / length], d [n])."""
    blocks, lists = weights.reshape(-1, QK_K), neighbours("iq1")
    codes = np.empty((len(blocks), 32), dtype=np.int32)
    shifts = np.empty((len(blocks), QK_K // length), dtype=np.int32)
    scales, d = np.empty_like(shifts), np.empty(len(blocks), dtype=np.float32)
    per_block, cut = by_block(importance, weights), new_cut()
    search_ternary(blocks, per_block, lists, length, negligible, cut, codes, shifts, scales, d)
    return point_numbers("iq1", codes), shifts, scales, d


def _encode_iq1_s(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    numbers, shifts, scales, d = _search(weights, importance, 32, _F(1e-12))
    high = packed(numbers >> 8, 4, 3, "u2").view("<u2")
    words = high | (scales << 12 | (shifts & 1) << 15).astype(np.uint16)
    parts = [halves(d * _F(1.125)), numbers.astype(np.uint8), words.astype("<u2").view(np.uint8)]
    out.reshape(len(d), -1)[:] = np.concatenate(parts, axis=1)


def _encode_iq1_m(
    weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None:
    numbers, shifts, scales, d = _search(weights, importance, 16, _F(1e-7))
    is_down = np.stack([shifts >> 1, shifts & 1], axis=2).reshape(len(d), -1)
    high = packed(numbers >> 8 | (is_down << 3).astype(np.uint16), 2, 4)
    # the sixteen bits of d, four above each twelve bits of scales
    quarters = halves(d * _F(1.1125)).view("<u2") >> np.arange(0, 16, 4, dtype=np.uint16)
    words = packed(scales, 4, 3, "u2").view("<u2") | quarters << np.uint16(12)
    parts = [numbers.astype(np.uint8), high, words.astype("<u2").view(np.uint8)]
    out.reshape(len(d), -1)[:] = np.concatenate(parts, axis=1)


ENCODERS: Final[dict[str, Encoder]] = {"iq1_s": _encode_iq1_s, "iq1_m": _encode_iq1_m}
