"""JSON files of an HF folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zenconvert.base.source_files import MAX_JSON, parse_json
from zenconvert.errors import CorruptFile


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Parse a JSON object. Raises SourceNotFound, CorruptFile, and InvalidInput for no file."""
    value = parse_json(path, limit)
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
