"""``CHANGES.md`` of a repository: which files got other bytes, and when. It belongs to the
repository, not to the release: no sums and no signature are about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zenconvert.verification.markdown import code

_TITLE: Final = "# Changes\n"
_SHORT: Final = 16


def entry(files: Mapping[str, tuple[str | None, str]]) -> list[str]:
    """Lines on changed files, name → (SHA-256 before where it is known, SHA-256 now)."""
    return [
        f"- {code(name)}: sha256 {_short(before)} became {_short(now)}"
        for name, (before, now) in files.items()
    ]


def _short(digest: str | None) -> str:
    return "(unknown)" if digest is None else f"{digest[:_SHORT]}…"


def changes_text(since: str, words: str, earlier: str) -> str:
    """The notes with a new entry on top; ``since`` is the commit that had the other bytes."""
    rest = earlier.removeprefix(_TITLE).strip("\n")
    parts = [_TITLE.strip(), f"## Since {since[:_SHORT]}", words, *([rest] if rest else [])]
    return "\n\n".join(parts) + "\n"
