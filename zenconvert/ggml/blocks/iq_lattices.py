"""Encoders of IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S, byte for byte as libggml writes them.

:mod:`.lattice_search` finds codes, signs and scales; here they are packed. Source:
``quantize_row_iq2_*_impl`` and ``quantize_row_iq3_*_impl`` in ggml-quants.c; block layouts:
:mod:`.iq_decoders`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml.blocks import Encoder
from zenconvert.ggml.blocks.iq_packing import (
    by_block,
    halves,
    in_runs,
    packed,
    point_numbers,
)
from zenconvert.ggml.blocks.lattice_search import Rules, new_fit, search_lattice
from zenconvert.ggml.blocks.neighbours import neighbours
from zenconvert.ggml.blocks.superblocks import QK_K

Pack: TypeAlias = Callable[
    [NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32]], list[NDArray[np.uint8]]
]
"""``(numbers of points [n, 256 / dimensions], signs [n, 32], scales [n, 256 / length])`` of n
blocks to the bytes that follow d."""

_F: Final = np.float32
_IQ2_XS: Final = Rules(
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
_IQ3_XXS: Final = _IQ2_XS._replace(
    length=32,
    dimensions=4,
    top=_F(7),
    tries=15,
    step=_F(0.2),
    negligible=_F(1e-8),
    spread=_F(2),
)
_RULES: Final = {
    "iq2_xxs": _IQ2_XS._replace(length=32, tries=6, descends=True, refines_all=True),
    "iq2_xs": _IQ2_XS,
    "iq2_s": _IQ2_XS._replace(
        negligible=_F(1e-8), spread=_F(2), plain_spread=_F(0.25), even_signs=False, erases=False
    ),
    "iq3_xxs": _IQ3_XXS,
    "iq3_s": _IQ3_XXS._replace(
        tries=9, negligible=_F(0), even_signs=False, refines_all=True, erases=False
    ),
}
_D_FACTORS: Final = {"iq2_s": 0.9875, "iq3_xxs": 1.0125, "iq3_s": 1.033}
"""d is stored a little larger or smaller than what was fitted."""


def _words(signs: NDArray[np.int32], scales: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Four times seven signs and a scale in each u32: u8[n, 32]."""
    seven = packed(signs & 127, 4, 7, "u4").view("<u4")
    words = seven | scales.astype(np.uint32) << np.uint32(28)
    octets: NDArray[np.uint8] = words.astype("<u4").view(np.uint8)
    return octets


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
    return [words.astype("<u2").view(np.uint8), packed(scales, 2, 4)]


def _pack_iq2_s(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    low, high = numbers.astype(np.uint8), packed(numbers >> 8, 4, 2)
    return [low, signs.astype(np.uint8), high, packed(scales, 2, 4)]


def _pack_iq3_xxs(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    return [numbers.astype(np.uint8), _words(signs, scales)]


def _pack_iq3_s(
    numbers: NDArray[np.uint16], signs: NDArray[np.int32], scales: NDArray[np.int32]
) -> list[NDArray[np.uint8]]:
    low, high = numbers.astype(np.uint8), packed(numbers >> 8, 8, 1)
    return [low, high, signs.astype(np.uint8), packed(scales, 2, 4)]


def _close_gaps(values: NDArray[Any], is_zero: NDArray[np.bool_]) -> NDArray[Any]:
    """Move the fields of sub-blocks of zeros, ``is_zero`` [n, 8], behind those of the others."""
    order = np.argsort(is_zero, axis=1, kind="stable")
    fields = values.reshape(*is_zero.shape, -1)
    return np.take_along_axis(fields, order[:, :, None], axis=1).reshape(values.shape)


def _encoder(type_name: str, pack: Pack) -> Encoder:
    rules = _RULES[type_name]
    factor = _F(_D_FACTORS.get(type_name, 1))

    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        blocks, lists = weights.reshape(-1, QK_K), neighbours(type_name)
        n = len(blocks)
        codes = np.empty((n, QK_K // rules.dimensions), dtype=np.int32)
        signs = np.empty((n, QK_K // 8), dtype=np.int32)
        scales = np.empty((n, QK_K // rules.length), dtype=np.int32)
        d = np.empty(n, dtype=np.float32)
        per_block, fit = by_block(importance, weights), new_fit(rules)
        search_lattice(blocks, per_block, lists, rules, fit, codes, signs, scales, d)
        parts = pack(point_numbers(type_name, codes), signs, scales)
        if type_name == "iq3_s":
            # C does not step over a sub-block of zeros here: what follows it moves up
            is_zero = (in_runs(blocks, rules.length) == 0).all(axis=2)
            parts[0], parts[2] = _close_gaps(parts[0], is_zero), _close_gaps(parts[2], is_zero)
        out.reshape(n, -1)[:] = np.concatenate([halves(d * factor), *parts], axis=1)

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    "iq2_xxs": _encoder("iq2_xxs", _pack_iq2_xxs),
    "iq2_xs": _encoder("iq2_xs", _pack_iq2_xs),
    "iq2_s": _encoder("iq2_s", _pack_iq2_s),
    "iq3_xxs": _encoder("iq3_xxs", _pack_iq3_xxs),
    "iq3_s": _encoder("iq3_s", _pack_iq3_s),
}
