"""Target types: ``f32``, ``f16``, ``int4``, ``int8``, ``int2``, ``own`` and what refines them.

``own``, which an empty type means too, keeps what is on a grid there and makes everything else f32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from zenconvert.errors import UsageError
from zenconvert.formats.onnx.codecs import BITS, SMALLEST_BLOCK
from zenconvert.model.encoding import F16, F32, Dense
from zenconvert.model.target import Scheme

OWN: Final = "own"
TYPES: Final = (OWN, "f32", "f16", "int4", "int4-g128", "int4-asym", "int8", "int4-standard")
"""Examples: any ``intBITS`` with ``-gGROUP``, ``-sym``, ``-asym``, ``-f16``, ``-standard`` and
``-acc0`` … ``-acc4`` will do."""
DEFAULT_GROUP: Final = 32
SHIPPED_LEVEL: Final = 4
"""``accuracy_level`` of MatMulNBits: activations in int8, as other exporters have it.

For one token, float32 takes five times as long with weights of 4 bits and eighty with 8
(onnxruntime 1.32, AVX2). It rounds, so plans name it.
"""

_ROUNDED: Final = {2: "float16", 3: "bfloat16", 4: "eight bits"}
"""Accuracy levels that are not float32."""

_FLOATS: Final = {"f32": F32, "f16": F16}
_LEVELS: Final = range(5)


@dataclass(frozen=True, slots=True)
class TargetType:
    """What a target type asks for."""

    floats: Dense = F32
    """Of activations, scales and of everything that is not quantized."""
    bits: int | None = None
    """Of linear weights; None where they are not quantized."""
    group: int | None = None
    """Columns per block where the type names them."""
    symmetric: bool | None = None
    """Whether there are zero points, where the type says so."""
    keeps_grids: bool = False
    """Weights that are on a grid already stay there, whatever it is."""
    standard: bool = False
    """Only operators of the ONNX standard."""
    level: int = SHIPPED_LEVEL

    @property
    def rounds_to(self) -> str | None:
        """What onnxruntime rounds the inputs of products with integers to; None for nothing.

        It fuses a product with what DequantizeLinear makes, and then takes a level of its own
        (``session.qdq_matmulnbits_accuracy_level``, 4 unless the session says otherwise).
        """
        if self.level not in _ROUNDED:
            return None
        return _ROUNDED[SHIPPED_LEVEL if self.standard else self.level]

    @property
    def scheme(self) -> Scheme | None:
        """The grid for weights that are on none."""
        if self.bits is None:
            return None
        return Scheme(self.bits, self.group or DEFAULT_GROUP, self.symmetric is not False)


def parse(text: str) -> TargetType:
    """Read a target type. Raises UsageError."""
    head, *suffixes = (text or OWN).split("-")
    kind = _head(head, text)
    for suffix in suffixes:
        kind = _refined(kind, suffix, text)
    return kind


def _head(head: str, text: str) -> TargetType:
    if head == OWN:
        return TargetType(keeps_grids=True)
    if head in _FLOATS:
        return TargetType(_FLOATS[head])
    match = re.fullmatch(r"int(\d)", head)
    if match is None or int(match[1]) not in BITS:
        raise UsageError(
            f"onnx:{text}: there is no type {head!r}; known are {OWN}, {', '.join(_FLOATS)} and "
            f"{', '.join(f'int{b}' for b in BITS)}"
        )
    return TargetType(bits=int(match[1]))


def _refined(kind: TargetType, suffix: str, text: str) -> TargetType:
    if suffix == "standard":
        return replace(kind, standard=True)
    if (match := re.fullmatch(r"acc(\d)", suffix)) is not None and int(match[1]) in _LEVELS:
        return replace(kind, level=int(match[1]))
    if suffix in _FLOATS and (kind.bits is not None or kind.keeps_grids):
        return replace(kind, floats=_FLOATS[suffix])
    if kind.bits is None:
        raise UsageError(f"onnx:{text}: {suffix!r} only refines integer types")
    if suffix in {"sym", "asym"} and kind.symmetric in {None, suffix == "sym"}:
        return replace(kind, symmetric=suffix == "sym")
    if (match := re.fullmatch(r"g(\d+)", suffix)) is not None:
        group = int(match[1])
        if group < SMALLEST_BLOCK or group & (group - 1):
            raise UsageError(
                f"onnx:{text}: groups must be a power of two from {SMALLEST_BLOCK} on, not {group}"
            )
        return replace(kind, group=group)
    raise UsageError(
        f"onnx:{text}: {suffix!r} is no suffix here; known are g32 … g256, sym, asym, f16, "
        "standard and acc0 … acc4"
    )
