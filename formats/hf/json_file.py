"""JSON files of an HF folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from zenconvert.base.source_files import parse_json
from zenconvert.errors import CorruptFile

_MEGABYTE: Final = 1 << 20
MOST_TOKENIZER: Final = 128 * _MEGABYTE
"""Bytes of a vocabulary, its merges or its templates; the largest published have 35 MB."""
_MOST: Final = {
    "tokenizer.json": MOST_TOKENIZER,
    "vocab.json": MOST_TOKENIZER,
    "tokenizer_config.json": 32 * _MEGABYTE,
    "special_tokens_map.json": 32 * _MEGABYTE,
    "added_tokens.json": 32 * _MEGABYTE,
}
_MOST_INDEX: Final = 128 * _MEGABYTE
"""Bytes of the names of a million tensors."""
_MOST_SETTINGS: Final = 8 * _MEGABYTE
"""Bytes of a config, whose longest part are the names of modules that are not quantized."""


def read_json(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Parse a JSON object of at most ``limit`` bytes, or of what files of that name have at most.

    Raises SourceNotFound, CorruptFile, and InvalidInput for no file.
    """
    value = parse_json(path, _most(path.name) if limit is None else limit)
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _most(name: str) -> int:
    return _MOST_INDEX if name.endswith(".index.json") else _MOST.get(name, _MOST_SETTINGS)
