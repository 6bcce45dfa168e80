"""The result of a verification."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zenconvert.checkpoint import Checkpoint
from zenconvert.verification.metrics import Drift

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Artifact:
    """Which bytes were measured."""

    path: str
    format: str
    sha256: str
    """Of the weight files: one file's digest, or the digest of ``digest  name`` lines."""

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return {"path": self.path, "format": self.format, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Report:
    """Drift of a candidate from a reference, overall and per language."""

    engine: str
    reference: Artifact
    candidate: Artifact
    context: int
    """Longest window in tokens."""
    overall: Drift
    languages: dict[str, Drift]

    @property
    def worst_language(self) -> str:
        """The language with the largest mean KL divergence."""
        return max(self.languages, key=lambda code: self.languages[code].kl_mean)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "engine": self.engine,
            "reference": self.reference.as_dict(),
            "candidate": self.candidate.as_dict(),
            "context": self.context,
            "worst_language": self.worst_language,
            "overall": self.overall.as_dict(),
            "languages": {code: drift.as_dict() for code, drift in self.languages.items()},
        }


def artifact(checkpoint: Checkpoint, label: str) -> Artifact:
    """Digest the weight files of a checkpoint; ``label`` is how the user named it."""
    return Artifact(label, checkpoint.format, digest(checkpoint.files))


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or over ``sha256  name`` lines of several."""
    digests = [_file_digest(path) for path in files]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{d}  {p.name}\n" for d, p in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
