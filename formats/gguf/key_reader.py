"""Typed access to the metadata of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from zenconvert.errors import CorruptFile
from zenconvert.formats.gguf.container import KeyValue

_INTEGERS: Final = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})


class KeyReader:
    """Typed access to the metadata of one file; errors name the file and the key."""

    def __init__(self, where: str, metadata: Mapping[str, KeyValue], prefix: str = "") -> None:
        self.where, self.metadata, self.prefix = where, metadata, prefix

    def _get(self, key: str) -> tuple[str, KeyValue | None]:
        full = f"{self.prefix}{key}"
        return full, self.metadata.get(full)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of any width, also as the same number for every layer.

        Raises CorruptFile when it is absent or something else.
        """
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        found = _one_of_all(found)
        if found is None or found[0] not in _INTEGERS or not 0 <= found[1] < 1 << 31:
            raise CorruptFile(
                f"{self.where}: {full} should be a positive integer, found {found!r:.100}"
            )
        return int(found[1])

    def real(self, key: str, default: float | None = None) -> float:
        """A float as its shortest decimal. Raises CorruptFile."""
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        if found is None or found[0] not in {"f32", "f64"}:
            raise CorruptFile(f"{self.where}: {full} should be a float, found {found!r:.100}")
        return float(str(np.float32(found[1]))) if found[0] == "f32" else float(found[1])

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises CorruptFile."""
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        if found is None or found[0] != "str":
            raise CorruptFile(f"{self.where}: {full} should be a string, found {found!r:.100}")
        return str(found[1])

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self._get(key)[1] is not None


def _one_of_all(found: KeyValue | None) -> KeyValue | None:
    """A number that is there once a layer, and is the same for all of them."""
    if found is None or not found[0].startswith("arr:") or found[0] == "arr:str":
        return found
    values = np.unique(found[1])
    return (found[0].removeprefix("arr:"), values[0]) if len(values) == 1 else found
