"""Protobuf messages as trees that can be changed without knowing their schema."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tests.fuzz.choices import Choices
from tests.fuzz.hostile import INTEGERS, TEXTS, damaged

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_KEPT: Final = 1 << 16
"""Bytes of messages whose fields are remembered: most inputs change the same ones."""
_WIDTH: Final = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a number for varints, bytes for the others."""

    number: int
    wire: int
    value: int | bytes
    raw: bytes = b""
    """How it was written, where it was read."""


def parse(data: bytes) -> tuple[Field, ...] | None:
    """The fields of a message, None where the bytes are none."""
    return _remembered(data) if len(data) < _KEPT else _parse(data)


def _parse(data: bytes) -> tuple[Field, ...] | None:
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            begin = at
            key, at = _read(data, at)
            number, wire = key >> 3, key & 7
            if not number:
                return None
            if wire == _VARINT:
                value, at = _read(data, at)
                fields.append(Field(number, wire, value, data[begin:at]))
                continue
            if wire == _BYTES:
                size, at = _read(data, at)
            elif wire in _WIDTH:
                size = _WIDTH[wire]
            else:
                return None
            if at + size > len(data):
                return None
            end = at + size
            fields.append(Field(number, wire, data[at:end], data[begin:end]))
            at = end
    except IndexError:
        return None
    return tuple(fields)


_remembered = lru_cache(maxsize=256)(_parse)


def pack(fields: list[Field]) -> bytes:
    """The bytes of a message."""
    parts: list[bytes] = []
    for field in fields:
        if field.raw:
            parts.append(field.raw)
            continue
        parts.append(_varint(field.number << 3 | field.wire))
        if isinstance(field.value, int):
            parts.append(_varint(field.value))
        elif field.wire == _BYTES:
            parts += [_varint(len(field.value)), field.value]
        else:
            parts.append(field.value)
    return b"".join(parts)


def mutated(data: bytes, choices: Choices) -> bytes:
    """One to four changes anywhere in the tree."""
    for _ in range(1 + choices.below(4)):
        data = _changed(data, choices, 1 + choices.below(6))
    return damaged(data, choices) if choices.chance(12) else data


def _changed(data: bytes, choices: Choices, depth: int) -> bytes:
    fields = list(parse(data) or ())
    if not fields:
        return _other(data, choices)
    at = choices.below(len(fields))
    field = fields[at]
    if depth and isinstance(field.value, bytes) and field.wire == _BYTES and len(field.value) > 1:
        fields[at] = Field(field.number, field.wire, _changed(field.value, choices, depth - 1))
        return pack(fields)
    _change(fields, at, choices)
    return pack(fields)


def _change(fields: list[Field], at: int, choices: Choices) -> None:
    field, kind = fields[at], choices.below(6)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(at, fields[choices.below(len(fields))])
    elif kind == 2:
        fields[at] = Field(1 + choices.below(40), field.wire, field.value)
    elif kind == 3:
        fields.insert(at, Field(1 + choices.below(20), _VARINT, _number(choices)))
    elif isinstance(field.value, int):
        fields[at] = Field(field.number, _VARINT, _number(choices))
    elif field.wire == _BYTES:
        fields[at] = Field(field.number, _BYTES, _other(field.value, choices))
    else:
        fields[at] = Field(field.number, field.wire, choices.blob(_WIDTH[field.wire]))


def _other(data: bytes, choices: Choices) -> bytes:
    kind = choices.below(4)
    if kind == 0:
        return b""
    if kind == 1:
        return choices.pick(TEXTS).encode("utf-8", "surrogatepass")
    if kind == 2:
        return damaged(data, choices)
    return data * choices.pick((2, 3, 50))


def _number(choices: Choices) -> int:
    return choices.pick(INTEGERS) % (1 << 64)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
