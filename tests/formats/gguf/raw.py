"""GGUF files put together byte by byte, also wrong ones."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key_value(key: str | bytes, type_id: int, value: bytes) -> bytes:
    """One key/value."""
    return text(key) + struct.pack("<I", type_id) + value


def tensor(
    name: str | bytes,
    dims: tuple[int, ...],
    *,
    type_id: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """One tensor info; ``dims`` fastest first, as stored."""
    count = len(dims) if n_dims is None else n_dims
    head = text(name) + struct.pack(f"<I{len(dims)}Q", count, *dims)
    return head + struct.pack("<IQ", type_id, offset)


@dataclass
class RawGguf:
    """A file from its parts; every count can lie."""

    magic: bytes = b"GGUF"
    version: int = 3
    key_values: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    kv_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32

    def pack(self) -> bytes:
        """The bytes."""
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        kvs = len(self.key_values) if self.kv_count is None else self.kv_count
        head = self.magic + struct.pack("<IQQ", self.version, tensors, kvs)
        head += b"".join(self.key_values) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data
