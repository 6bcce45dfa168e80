"""SHA-256 of weight files, remembered, since hashing 222 GB takes minutes.

A remembered digest holds while path, size, modification and change time and inode are the same. The
change time cannot be set from outside: a file whose bytes were replaced does not pass for the old
one. Files touched within the last seconds are not remembered, since a clock tick is not fine enough
to tell another write.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from zenconvert.base.machine import usable_cores
from zenconvert.verification.cache import cache_folder, new_file

_CHUNK: Final = 1 << 22
_SETTLED_NS: Final = 3_000_000_000


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or over ``sha256  name`` lines of several."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        digests = list(pool.map(file_digest, files))
    return combined(files, digests)


def combined(files: Sequence[Path], digests: Sequence[str]) -> str:
    """The only file's digest, or SHA-256 over ``sha256  name`` lines of several."""
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{d}  {p.name}\n" for d, p in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered."""
    path = path.resolve()
    before = _state(path)
    place = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    try:
        known = json.loads(place.read_text(encoding="utf-8"))
        if known["state"] == before:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or nothing usable
    found = read_digest(path)
    settled = time.time_ns() - max(before[1:3]) > _SETTLED_NS
    if settled and _state(path) == before:
        text = json.dumps({"path": str(path), "state": before, "sha256": found})
        with new_file(place) as temporary:
            if temporary is not None:
                temporary.write_text(text, encoding="utf-8")
    return found


def _state(path: Path) -> list[int]:
    """Size, modification time, change time, inode and device."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def read_digest(path: Path) -> str:
    """SHA-256 of a file, read now."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
