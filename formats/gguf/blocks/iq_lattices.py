"""Encoders of IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S, byte for byte as libggml writes them.

:mod:`.lattice_search` finds codes, signs and scales; here they are packed. Source:
``quantize_row_iq2_*_impl`` and ``quantize_row_iq3_*_impl`` in ggml-quants.c; block layouts:
:mod:`.iq_decoders`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.formats.gguf.blocks import Encoder
from zenconvert.formats.gguf.blocks.grids import codes
from zenconvert.formats.gguf.blocks.lattice_search import Rules, search_lattice
from zenconvert.formats.gguf.blocks.neighbours import neighbours
from zenconvert.formats.gguf.blocks.superblocks import QK_K

_F: Final = np.float32
NO_IMPORTANCE: Final = np.empty((0, QK_K), dtype=np.float32)
NO_IMPORTANCE.flags.writeable = False

_IQ2: Final = Rules(
    length=16,
    dimensions=8,
    top=_F(2),
    tries=9,
    step=_F(0.1),
    negligible=_F(1e-15),
    spread=_F(1),
    plain_spread=_F(0),
    even_signs=True,
    descends=False,
    refines_all=False,
    erases=True,
)
_IQ3: Final = _IQ2._replace(
    length=32,
    dimensions=4,
    top=_F(7),
    tries=15,
    step=_F(0.2),
    negligible=_F(1e-8),
    spread=_F(2),
)
_RULES: Final = {
    "iq2_xxs": _IQ2._replace(length=32, tries=6, descends=True, refines_all=True),
    "iq2_xs": _IQ2,
    "iq2_s": _IQ2._replace(
        negligible=_F(1e-8), spread=_F(2), plain_spread=_F(0.25), even_signs=False, erases=False
    ),
    "iq3_xxs": _IQ3,
    "iq3_s": _IQ3._replace(
        tries=9, negligible=_F(0), even_signs=False, refines_all=True, erases=False
    ),
}
# d is stored a little larger or smaller than what was fitted
_D_FACTORS: Final = {"iq2_s": 0.9875, "iq3_xxs": 1.0125, "iq3_s": 1.033}


@cache
def numbers_of_codes(grid: str) -> NDArray[np.uint16]:
    """u16[codes]: the number of a codebook's point by its code."""
    numbers = np.zeros(1 << 16, dtype=np.uint16)
    numbers[codes(grid)] = np.arange(len(codes(grid)))
    return numbers


def halves(d: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``d`` [n] as float16, u8[n, 2]. Raises InvalidInput for NaN, which C would stop at."""
    if np.isnan(d).any():
        raise InvalidInput(
            "the products of weights and importance overflow float32; divide the importance of "
            "this tensor by a constant, which changes nothing else"
        )
    with np.errstate(over="ignore"):
        return d.astype("<f2").view(np.uint8).reshape(-1, 2)


def packed(values: NDArray[Any], bits: int, dtype: str = "u1") -> NDArray[np.uint8]:
    """Runs of values [n, runs, members] of ``bits`` each as bytes u8[n, bytes], lowest first."""
    shifts = bits * np.arange(values.shape[2])
    words = np.bitwise_or.reduce(values.astype(np.uint32) << shifts.astype(np.uint32), axis=2)
    return words.astype(f"<{dtype}").view(np.uint8)


def in_runs(values: NDArray[Any], members: int) -> NDArray[Any]:
    return values.reshape(len(values), -1, members)


def _words(signs: NDArray[np.int32], scales: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Four times seven signs and a scale in each u32: u8[n, 32]."""
    seven = packed(in_runs(signs & 127, 4), 7, "u4").view("<u4")
    return (seven | scales.astype(np.uint32) << np.uint32(28)).astype("<u4").view(np.uint8)


def _pack_iq2_xxs(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    words = in_runs(_words(signs, scales), 4)
    groups = np.concatenate([in_runs(numbers.astype(np.uint8), 4), words], axis=2)
    return [groups.reshape(len(groups), -1)]


def _pack_iq2_xs(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    words = numbers | (signs & 127).astype(np.uint16) << np.uint16(9)
    return [words.astype("<u2").view(np.uint8), packed(in_runs(scales, 2), 4)]


def _pack_iq2_s(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    high = packed(in_runs(numbers >> 8, 4), 2)
    return [
        numbers.astype(np.uint8),
        signs.astype(np.uint8),
        high,
        packed(in_runs(scales, 2), 4),
    ]


def _pack_iq3_xxs(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    return [numbers.astype(np.uint8), _words(signs, scales)]


def _pack_iq3_s(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    high = packed(in_runs(numbers >> 8, 8), 1)
    return [
        numbers.astype(np.uint8),
        high,
        signs.astype(np.uint8),
        packed(in_runs(scales, 2), 4),
    ]


def _encoder(type_name: str, pack: Callable[..., list[NDArray[np.uint8]]]) -> Encoder:
    rules = _RULES[type_name]
    factor = _F(_D_FACTORS.get(type_name, 1))

    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        by_block = NO_IMPORTANCE if importance is None else importance.reshape(-1, QK_K)
        blocks = weights.reshape(-1, QK_K)
        n = len(blocks)
        found = np.empty((n, QK_K // rules.dimensions), dtype=np.int32)
        signs = np.empty((n, QK_K // 8), dtype=np.int32)
        scales = np.empty((n, QK_K // rules.length), dtype=np.int32)
        d = np.empty(n, dtype=np.float32)
        search_lattice(
            blocks, by_block, neighbours(type_name), rules, found, signs, scales, d
        )
        parts = pack(numbers_of_codes(type_name)[found], signs, scales)
        out.reshape(n, -1)[:] = np.concatenate([halves(d * factor), *parts], axis=1)

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    "iq2_xxs": _encoder("iq2_xxs", _pack_iq2_xxs),
    "iq2_xs": _encoder("iq2_xs", _pack_iq2_xs),
    "iq2_s": _encoder("iq2_s", _pack_iq2_s),
    "iq3_xxs": _encoder("iq3_xxs", _pack_iq3_xxs),
    "iq3_s": _encoder("iq3_s", _pack_iq3_s),
}
