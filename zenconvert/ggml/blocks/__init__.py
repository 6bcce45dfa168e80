"""Block codecs: float32 rows to ggml block bytes and back, bit for bit as libggml does it.

The reference is libggml-base built for plain x86-64: strict sequential IEEE binary32, no fused
multiply-add. The tables below name the module that holds the kernels of each type; a module, and
with it Numba, is imported when one of its types is first used.

A kernel module exports ``ENCODERS`` and / or ``DECODERS``, dicts from type name to :data:`Encoder`
and :data:`Decoder`. Both release the GIL and keep no state, so slabs of rows may run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput, UnsupportedEncoding
from zenconvert.ggml.types import BY_NAME, GgmlType

Encoder: TypeAlias = Callable[
    [NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8]], None
]
"""``(weights f32[rows, columns], importance f32[columns] or None, out u8[rows, row_bytes])``."""

Decoder: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.float32]], None]
"""``(blocks u8[n, type_size], out f32[n, block_size])``, both C-contiguous."""

_ENCODERS: Final[dict[str, str]] = {
    "f32": "dense",
    "f16": "dense",
    "bf16": "dense",
    "q4_0": "legacy",
    "q4_1": "legacy",
    "q5_0": "legacy",
    "q5_1": "legacy",
    "q8_0": "legacy",
    "q2_k": "k_quants",
    "q3_k": "k_quants",
    "q4_k": "k_quants",
    "q5_k": "k_quants",
    "q6_k": "k_quants",
    "iq4_nl": "iq4",
    "iq4_xs": "iq4",
    "iq3_xxs": "iq_lattices",
    "iq3_s": "iq_lattices",
    "iq2_xxs": "iq_lattices",
    "iq2_xs": "iq_lattices",
    "iq2_s": "iq_lattices",
    "iq1_s": "iq1",
    "iq1_m": "iq1",
    "tq1_0": "low_bit",
    "tq2_0": "low_bit",
    "q1_0": "low_bit",
    "q2_0": "low_bit",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
_DECODERS: Final[dict[str, str]] = {
    "f64": "dense",
    "f32": "dense",
    "f16": "dense",
    "bf16": "dense",
    "i64": "dense",
    "i32": "dense",
    "i16": "dense",
    "i8": "dense",
    "q4_0": "legacy_decoders",
    "q4_1": "legacy_decoders",
    "q5_0": "legacy_decoders",
    "q5_1": "legacy_decoders",
    "q8_0": "legacy_decoders",
    "q8_1": "legacy_decoders",
    "q2_k": "k_decoders",
    "q3_k": "k_decoders",
    "q4_k": "k_decoders",
    "q5_k": "k_decoders",
    "q6_k": "k_decoders",
    "q8_k": "k_decoders",
    "iq4_nl": "iq4",
    "iq4_xs": "iq4",
    "iq3_xxs": "iq_decoders",
    "iq3_s": "iq_decoders",
    "iq2_xxs": "iq_decoders",
    "iq2_xs": "iq_decoders",
    "iq2_s": "iq_decoders",
    "iq1_s": "iq_decoders",
    "iq1_m": "iq_decoders",
    "tq1_0": "low_bit",
    "tq2_0": "low_bit",
    "q1_0": "low_bit",
    "q2_0": "low_bit",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
_USES_IMPORTANCE: Final = frozenset(
    {
        *("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
        *("iq4_nl", "iq4_xs", "iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m"),
    }
)
_REQUIRES_IMPORTANCE: Final = frozenset({"iq2_xxs", "iq2_xs", "iq1_s"})
_F16_MAX: Final = 65504.0
_CHUNK: Final = 1 << 17
"""Elements checked and then encoded at a time: small enough to stay in a core's L2 cache."""


def can_encode(type_name: str) -> bool:
    """True when :func:`encode` writes this type."""
    return type_name in _ENCODERS


def can_decode(type_name: str) -> bool:
    """True when :func:`decode` reads this type."""
    return type_name in _DECODERS


def uses_importance(type_name: str) -> bool:
    """True when importance weights change the bytes that :func:`encode` writes for this type."""
    return type_name in _USES_IMPORTANCE


def requires_importance(type_name: str) -> bool:
    """True when :func:`encode` refuses this type without importance weights, as libggml does."""
    return type_name in _REQUIRES_IMPORTANCE


def encode(
    type_name: str,
    weights: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Encode ``weights`` f32[rows, columns] -> u8[rows, row_bytes], as ``ggml_quantize_chunk``.

    ``importance`` f32[columns] (mean squared activation of each input channel) weights the error
    of each column; types for which :func:`uses_importance` is false ignore it, and those for which
    :func:`requires_importance` is true cannot do without.

    Raises UnsupportedEncoding for a type without an encoder; InvalidInput for rows that are not
    whole blocks, for NaN or infinite weights, for weights too large for the type's float16 scales,
    and for importance that does not fit or is missing. ``f32``, ``f16`` and ``bf16`` keep NaN and
    infinity.
    """
    encoder, ggml_type = _encoder(type_name), BY_NAME[type_name]
    weights = _frozen(weights, np.float32)
    rows, columns = weights.shape
    out = np.empty((rows, _row_bytes(ggml_type, columns)), dtype=np.uint8)
    if importance is not None:
        importance = _checked_importance(importance, columns)
    elif requires_importance(type_name):
        raise InvalidInput(
            f"{type_name} is quantized with importance weights only; none were given"
        )
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        part, encoded = weights[start : start + step], out[start : start + step]
        peak = 0.0 if ggml_type.is_plain else _peak(part, start)
        encoder(part, importance, encoded)
        if peak > _F16_MAX and not np.isfinite(decode(type_name, encoded, columns)).all():
            raise InvalidInput(
                f"weights up to {peak:g} in rows {start} to {start + len(part) - 1} overflow the "
                f"float16 scales of {type_name}; choose bf16 or f32 for this tensor"
            )
    return out


def decode(type_name: str, blocks: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Decode ``blocks`` u8[rows, row_bytes] -> f32[rows, columns], as ggml's ``to_float``.

    Raises UnsupportedEncoding for a type without a decoder, InvalidInput when the bytes of a row
    are not those of ``columns`` elements.
    """
    decoder, ggml_type = _decoder(type_name), BY_NAME[type_name]
    blocks = _frozen(blocks, np.uint8)
    rows, row_bytes = blocks.shape
    if row_bytes != _row_bytes(ggml_type, columns):
        raise InvalidInput(
            f"a row of {columns} elements in {type_name} takes {ggml_type.row_bytes(columns)} "
            f"bytes; found {row_bytes}"
        )
    out = np.empty((rows, columns), dtype=np.float32)
    if out.size:
        decoder(blocks.reshape(-1, ggml_type.type_size), out.reshape(-1, ggml_type.block_size))
    return out


def warm_up(type_names: Iterable[str]) -> None:
    """Load the kernels of these types (from Numba's cache, else compiled) on one tiny row each.

    Raises UnsupportedEncoding for a type that can be neither encoded nor decoded.
    """
    for name in type_names:
        _decoder(name)
        columns = BY_NAME[name].block_size
        decode(name, np.zeros((1, BY_NAME[name].type_size), dtype=np.uint8), columns)
        if can_encode(name):
            row = np.zeros((1, columns), dtype=np.float32)
            if not requires_importance(name):
                encode(name, row)
            if uses_importance(name):
                encode(name, row, np.ones(columns, dtype=np.float32))


@cache
def _encoder(type_name: str) -> Encoder:
    if type_name not in _ENCODERS:
        raise UnsupportedEncoding(
            f"{type_name!r} cannot be written; can be: {', '.join(_ENCODERS)}"
        )
    encoder: Encoder = import_module(f"{__name__}.{_ENCODERS[type_name]}").ENCODERS[type_name]
    return encoder


@cache
def _decoder(type_name: str) -> Decoder:
    if type_name not in _DECODERS:
        raise UnsupportedEncoding(f"{type_name!r} cannot be read; can be: {', '.join(_DECODERS)}")
    decoder: Decoder = import_module(f"{__name__}.{_DECODERS[type_name]}").DECODERS[type_name]
    return decoder


def _frozen(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """A read-only, aligned, C-contiguous view or copy: one Numba type, so one compiled kernel."""
    view = np.require(array, dtype, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def _row_bytes(ggml_type: GgmlType, columns: int) -> int:
    try:
        return ggml_type.row_bytes(columns)
    except ValueError as error:
        raise InvalidInput(f"{error}; choose a type with smaller blocks") from error


def _peak(weights: NDArray[np.float32], first_row: int) -> float:
    """Largest absolute weight. Raises InvalidInput for NaN and infinity."""
    peak = float(max(weights.max(initial=0.0), -weights.min(initial=0.0)))
    if np.isfinite(peak):
        return peak
    row, column = np.argwhere(~np.isfinite(weights))[0]
    raise InvalidInput(
        f"weight [{first_row + row}, {column}] is {weights[row, column]}; only finite weights can "
        "be quantized"
    )


def _checked_importance(importance: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    if importance.shape != (columns,):
        raise InvalidInput(
            f"importance has shape {list(importance.shape)}; the weights have {columns} columns"
        )
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise InvalidInput("importance weights must be finite and not negative")
    return _frozen(importance, np.float32)
