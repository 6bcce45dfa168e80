"""Models that come with the package; ``builtin:NAME`` names one as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zenconvert.errors import SourceNotFound

BUILTIN: Final = ("zen-nano",)


def builtin_path(name: str) -> Path:
    """Folder of a bundled model. Raises SourceNotFound."""
    if name not in BUILTIN:
        raise SourceNotFound(
            f"builtin:{name}: no such model is bundled; there is {', '.join(BUILTIN)}"
        )
    return Path(__file__).parent / name
