"""What is done: one file ``.zenconvert/KEY.json`` a job, written when its outputs are whole.

A job is done while its outputs are what the record says: same size, same digest. Digests are
remembered with a file's times and inode (``verification.digests``), so that a look costs nothing
until a file was touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from zenconvert.base.atomic import LONGEST_NAME, write_whole
from zenconvert.base.escaping import json_text
from zenconvert.base.notes import make_folder
from zenconvert.base.scratch import remove
from zenconvert.base.source_files import parse_json
from zenconvert.publication.checksums import is_unsafe
from zenconvert.verification.digests import file_digest

STATE: Final = ".zenconvert"
"""Folder of the job graph's state, below the release's."""

FAILED_ENGINES: Final = "failed_engines"
"""Among the facts of a measurement: engines that gave no figures; the next run asks them again."""


_FACTS: Final[Mapping[str, type]] = {
    "exact": bool, "losses": list, FAILED_ENGINES: list, "calibration": str, "samples": str,
    "samples_sha256": str, "statistics_sha256": str, "tokens": dict, "seed": int,
}  # fmt: skip
_OF_GATHERING: Final = ("samples", "samples_sha256", "statistics_sha256", "tokens", "seed")


@dataclass(frozen=True, slots=True)
class Written:
    """A file that a job wrote."""

    path: str
    """Below the release's folder, with ``/``."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """A job that is done."""

    key: str
    kind: str
    name: str
    outputs: tuple[Written, ...]
    read: str = ""
    """Digest of the outputs of the job that it read."""
    scratch: Mapping[str, int] = field(default_factory=dict)
    """Files that only serve other jobs, below the release's folder → size. They may go when these
    are done."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, as JSON."""

    @property
    def digest(self) -> str:
        """SHA-256 of the names and digests of its outputs."""
        lines = "".join(f"{w.sha256}  {w.path}\n" for w in self.outputs)
        return sha256(lines.encode()).hexdigest()


class Ledger:
    """The ledger of a release's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / STATE

    def get(self, key: str) -> Record | None:
        """The record of a job; None where there is none, or none that a job would write."""
        try:
            value = parse_json(self.state / f"{key}.json")
            outputs = tuple(Written(**one) for one in value.pop("outputs"))
            record = Record(outputs=outputs, **value)
            return record if _is_sound(record) else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def gathered(self, calibration: str) -> Record | None:
        """The record of what was gathered under a key; None where there is none."""
        found = (r for r in self.all() if r.kind == "gather" and calibration)
        return next((r for r in found if r.facts.get("calibration") == calibration), None)

    def all(self) -> Iterator[Record]:
        """Every record there is, in the order of the keys."""
        for path in sorted(self.state.glob("*.json")):
            record = self.get(path.stem)
            if record is not None and record.key == path.stem:
                yield record

    def serves(self, record: Record) -> bool:
        """Whether what only serves other jobs is there."""
        paths = ((self.folder / name, size) for name, size in record.scratch.items())
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def holds(self, record: Record) -> bool:
        """Whether the outputs are still what the record says."""
        for written in record.outputs:
            path = self.folder / written.path
            try:
                same = path.is_file() and path.stat().st_size == written.size
                if not same or file_digest(path) != written.sha256:
                    return False
            except OSError:
                return False
        return True

    def written(self, files: Iterable[Path]) -> tuple[Written, ...]:
        """Describe files below the folder; of a folder, everything in it."""
        found = []
        for file in files:
            inside = sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]
            for path in inside:
                name = path.relative_to(self.folder).as_posix()
                found.append(Written(name, path.stat().st_size, file_digest(path)))
        return tuple(found)

    def discard(self, name: str) -> None:
        """Remove a file that a record names: nothing that is elsewhere, and no folder."""
        path = self.folder / name
        home = Path(os.path.realpath(self.folder))
        inside = Path(os.path.realpath(path.parent)).is_relative_to(home)
        if inside and (path.is_symlink() or path.is_file()):
            path.unlink()

    def put(self, record: Record) -> None:
        """Write a record. Raises as ``write_whole``."""
        make_folder(self.state)
        write_whole(self.state / f"{record.key}.json", json_bytes(asdict(record)))

    def remove(self, key: str) -> None:
        """Forget a job. Raises OSError."""
        path = self.state / f"{key}.json"
        if os.path.lexists(path):
            remove(path)


def _is_long(name: str) -> bool:
    """Whether no file can have that name."""
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in name.split("/"))


def _is_sound(record: Record) -> bool:
    """Whether everything has its type, and names nothing outside of the release's folder."""
    words = [record.key, record.kind, record.name, record.read]
    words += [word for one in record.outputs for word in (one.path, one.sha256)]
    sizes = [one.size for one in record.outputs] + list(record.scratch.values())
    names = [record.name, *(one.path for one in record.outputs), *record.scratch]
    facts, needed = record.facts, set(_OF_GATHERING if record.kind == "gather" else ())
    return (
        all(isinstance(word, str) for word in words)
        and all(isinstance(size, int) for size in sizes)
        and not any(is_unsafe(name) or _is_long(name) for name in names)
        and "/" not in record.name
        and all(isinstance(value, _FACTS.get(name, object)) for name, value in facts.items())
        and (not facts or facts.keys() >= needed)
    )


def json_bytes(value: Any) -> bytes:
    """JSON for a file."""
    return (json_text(value, indent=1) + "\n").encode()
