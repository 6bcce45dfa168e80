"""GGUF files as rows that can be changed one by one, packed whether or not they make sense."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from tests.fuzz.choices import Choices
from tests.fuzz.hostile import FLOATS, INTEGERS, TEXTS, damaged

KINDS: Final = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"),
    "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<B"), "str": (8, ""), "u64": (10, "<Q"),
    "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_TYPES: Final = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
    10,
    14,
    15,
    16,
    24,
    28,
    29,
    30,
    31,
    34,
    39,
    40,
    99,
    2**31,
)

F32: Final = 0
F16: Final = 1


@dataclass(frozen=True)
class Key:
    """A key/value; ``kind`` may be ``arr:KIND``."""

    name: str
    kind: str
    value: Any
    count: int | None = None
    """What an array, or a text, claims to be long."""

    @cached_property
    def packed(self) -> bytes:
        """Its bytes in a file."""
        return _text(self.name) + _value(self)


@dataclass(frozen=True)
class Info:
    """A tensor; ``dims`` fastest first."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int

    @cached_property
    def packed(self) -> bytes:
        """Its bytes in a file."""
        dims = b"".join(struct.pack("<Q", _u64(dim)) for dim in self.dims)
        head = _text(self.name) + struct.pack("<I", len(self.dims))
        return head + dims + struct.pack("<IQ", self.type % 2**32, _u64(self.offset))


@dataclass
class Gguf:
    """A file; counts None are the true ones."""

    keys: list[Key]
    infos: list[Info]
    data: int = 0
    """Bytes of the data section."""
    version: int = 3
    key_count: int | None = None
    info_count: int | None = None
    magic: bytes = b"GGUF"
    alignment: int = 32
    tail: bytes = field(default=b"")


def with_tensors(keys: list[Key], tensors: list[tuple[str, tuple[int, ...], int]]) -> Gguf:
    """A file whose tensors lie one after another."""
    infos, at = [], 0
    for name, dims, kind in tensors:
        infos.append(Info(name, dims, kind, at))
        size = 4 if kind == F32 else 2
        for dim in dims:
            size *= dim
        at += -(-size // 32) * 32
    return Gguf(keys, infos, at)


def pack(file: Gguf) -> bytes:
    """The bytes of a file."""
    key_count = len(file.keys) if file.key_count is None else file.key_count
    info_count = len(file.infos) if file.info_count is None else file.info_count
    parts = [
        file.magic,
        struct.pack("<IQQ", file.version % 2**32, _u64(info_count), _u64(key_count)),
    ]
    parts += [key.packed for key in file.keys]
    parts += [info.packed for info in file.infos]
    header = b"".join(parts)
    return header + bytes(-len(header) % file.alignment) + bytes(file.data) + file.tail


def _u64(value: int) -> int:
    return value % 2**64


def _text(text: str, count: int | None = None) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", _u64(len(data) if count is None else count)) + data


def _value(key: Key) -> bytes:
    if not key.kind.startswith("arr:"):
        number, _ = KINDS[key.kind]
        return struct.pack("<I", number) + _scalar(key.kind, key.value, key.count)
    element = key.kind.removeprefix("arr:")
    items = key.value if isinstance(key.value, list) else [key.value]
    count = len(items) if key.count is None else key.count
    head = struct.pack("<IIQ", 9, KINDS[element][0], _u64(count))
    return head + b"".join(_scalar(element, item, None) for item in items)


def _scalar(kind: str, value: Any, count: int | None) -> bytes:
    _, form = KINDS[kind]
    if not form:
        return _text(str(value), count)
    if kind in {"f32", "f64"}:
        try:
            return struct.pack(form, float(value))
        except (TypeError, ValueError, OverflowError):
            return bytes(struct.calcsize(form))
    size = struct.calcsize(form)
    number = int(value) if isinstance(value, int | bool) else len(str(value))
    return (number % (1 << (8 * size))).to_bytes(size, "little")


def mutated(file: Gguf, choices: Choices) -> bytes:
    """The bytes of a file with one to four changes."""
    copy = replace(file, keys=list(file.keys), infos=list(file.infos))
    for _ in range(1 + choices.below(4)):
        kind = choices.below(8)
        if kind < 4 and copy.keys:
            _change_key(copy, choices)
        elif kind < 7 and copy.infos:
            _change_info(copy, choices)
        else:
            _change_head(copy, choices)
    data = pack(copy)
    return damaged(data, choices) if choices.chance(8) else data


def _change_key(file: Gguf, choices: Choices) -> None:
    at, kind = choices.below(len(file.keys)), choices.below(8)
    key = file.keys[at]
    if kind == 0:
        del file.keys[at]
    elif kind == 1:
        file.keys.insert(choices.below(len(file.keys) + 1), key)
    elif kind == 2:
        other = choices.pick(file.keys).name
        file.keys[at] = replace(key, name=choices.pick((other, *TEXTS)))
    elif kind == 3:
        array = "arr:" if choices.chance(4) else ""
        file.keys[at] = replace(key, kind=array + choices.pick(tuple(KINDS)))
    elif kind == 4:
        file.keys[at] = replace(key, count=choices.pick(INTEGERS))
    elif key.kind.startswith("arr:") and isinstance(key.value, list):
        file.keys[at] = replace(key, value=_items(key, choices))
    else:
        file.keys[at] = replace(key, value=_scalar_value(key.kind, choices))


def _scalar_value(kind: str, choices: Choices) -> Any:
    if kind == "str":
        return choices.pick(TEXTS)
    if kind in {"f32", "f64"}:
        return choices.pick(FLOATS)
    return choices.pick(INTEGERS)


def _items(key: Key, choices: Choices) -> list[Any]:
    items, kind = list(key.value), choices.below(4)
    at = choices.below(len(items) + 1)
    if kind == 0:
        del items[at:]
    elif kind == 1:
        items[at:at] = items[:at]
    else:
        items[at : at + 1] = [_scalar_value(key.kind.removeprefix("arr:"), choices)]
    return items


def _change_info(file: Gguf, choices: Choices) -> None:
    at, kind = choices.below(len(file.infos)), choices.below(8)
    info = file.infos[at]
    if kind == 0:
        del file.infos[at]
    elif kind == 1:
        file.infos.insert(choices.below(len(file.infos) + 1), info)
    elif kind == 2:
        file.infos[at] = replace(info, name=choices.pick((choices.pick(file.infos).name, *TEXTS)))
    elif kind in {3, 4}:
        dims = list(info.dims)
        place = choices.below(len(dims) + 1)
        dims[place : place + choices.below(2)] = [choices.pick(INTEGERS)]
        file.infos[at] = replace(info, dims=tuple(dims))
    elif kind == 5:
        file.infos[at] = replace(info, type=choices.pick(_TYPES))
    elif kind == 6:
        file.infos[at] = replace(info, offset=info.offset + choices.pick((32, -32, 1, 64)))
    else:
        file.infos[at] = replace(info, offset=choices.pick(INTEGERS))


def _change_head(file: Gguf, choices: Choices) -> None:
    kind = choices.below(6)
    if kind == 0:
        file.key_count = choices.pick((len(file.keys) + 1, *INTEGERS))
    elif kind == 1:
        file.info_count = choices.pick((len(file.infos) + 1, *INTEGERS))
    elif kind == 2:
        file.version = choices.pick((0, 1, 2, 4, 2 << 24, 3 << 24, 2**32 - 1))
    elif kind == 3:
        file.data = choices.pick((0, 1, 31, 32, max(0, file.data - 1), file.data + 1000))
    elif kind == 4:
        file.keys.append(Key("general.alignment", "u32", choices.pick(INTEGERS)))
    else:
        file.tail = choices.blob(choices.below(40))
