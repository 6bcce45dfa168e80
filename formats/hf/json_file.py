"""JSON files of an HF folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, SourceNotFound

_MAX_JSON: Final = 256 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object. Raises SourceNotFound or CorruptFile."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CorruptFile(f"{path}: {path.stat().st_size} bytes of JSON exceed {_MAX_JSON}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptFile(f"{path}: no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
