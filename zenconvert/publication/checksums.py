"""``SHA256SUMS`` of a release or a shelf, as ``sha256sum -c`` reads it.

A line is 64 hex digits, two spaces and a name; a name with a backslash, line feed or carriage
return is escaped and its line begins with a backslash (GNU coreutils).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

from zenconvert.base.machine import usable_cores
from zenconvert.base.progress import Count
from zenconvert.base.source_files import read_text
from zenconvert.errors import CorruptFile, InvalidInput, UnsafePath
from zenconvert.verification.digests import file_digest, read_digest

SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "model.sig"
CHANGES: Final = "CHANGES.md"
OUTSIDE: Final = frozenset(
    {SUMS, SIGNATURE, CHANGES, ".gitattributes", ".git", ".gitignore", ".cache", ".zenconvert"}
)
"""What a folder may hold beside the release itself: the sums, what is written after them
(signatures are not deterministic, changes belong to a repository), and what the Hub and the job
graph keep."""

_LINE: Final = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_ESCAPED: Final = {written: sign for sign, written in _ESCAPES.items()}


def listed(folder: Path) -> tuple[str, ...]:
    """Every file below a folder that its sums name, as paths with ``/``, sorted.

    The sums of a shelf are part of the release around it. Hidden names of unfinished outputs
    (``.NAME.partial``) are not listed, nor is what is no file. Raises UnsafePath for a folder that
    is a link.
    """
    found = []
    for place, folders, files in os.walk(folder):
        below = Path(place)
        folders[:] = [n for n in folders if n not in OUTSIDE and not _is_partial(n)]
        for name in folders:
            if (below / name).is_symlink():
                raise UnsafePath(f"{below / name}: a folder of a release may not be a link")
        top = below == folder
        for name in files:
            sums = name == SUMS and not top
            ours = (sums or name not in OUTSIDE) and not _is_partial(name)
            if ours and (below / name).is_file():
                found.append((below / name).relative_to(folder).as_posix())
    return tuple(sorted(found))


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def hash_files(
    folder: Path, names: Iterable[str], *, fresh: bool = False, progress: Count | None = None
) -> dict[str, str]:
    """SHA-256 of files, several at once, each in a stream.

    ``fresh`` reads every byte now; otherwise what is remembered of an unchanged file will do.
    Raises CorruptFile for a file that cannot be read.
    """
    wanted = list(names)
    read = read_digest if fresh else file_digest
    found = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        digests = pool.map(read, [folder / name for name in wanted])
        try:
            for number, (name, digest) in enumerate(zip(wanted, digests, strict=True), 1):
                found[name] = digest
                if progress is not None:
                    progress(number, len(wanted))
        except OSError as error:
            where = error.filename or folder
            raise CorruptFile(f"{where}: it cannot be read: {error.strerror}") from error
    return found


def sums_bytes(digests: Mapping[str, str]) -> bytes:
    """The file, sorted by name."""
    return b"".join(_line(name, digests[name]) for name in sorted(digests))


def _line(name: str, digest: str) -> bytes:
    written = "".join(_ESCAPES.get(sign, sign) for sign in name)
    mark = "\\" if written != name else ""
    return f"{mark}{digest}  {written}\n".encode()


def read_sums(path: Path) -> dict[str, str]:
    """Name → digest. Raises CorruptFile for a malformed line or a name that leaves the folder."""
    found: dict[str, str] = {}
    try:
        lines = read_text(path).split("\n")
    except InvalidInput as error:
        raise CorruptFile(f"{path}: the sums cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise CorruptFile(f"{path}, line {number}: expected 'SHA256  NAME', found {line!r:.99}")
        mark, digest, name = match.groups()
        if mark:
            name = re.sub(r"\\[\\nr]", lambda m: _ESCAPED[m[0]], name)
        if is_unsafe(name):
            raise CorruptFile(f"{path}, line {number}: {name!r} leaves the folder")
        found[name] = digest
    return found


def is_unsafe(name: str) -> bool:
    """Whether a relative name would leave its folder."""
    parts = PurePosixPath(name).parts
    return not parts or name.startswith("/") or ".." in parts or "\x00" in name
