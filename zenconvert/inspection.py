"""Facts about a checkpoint, from headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.opening.sources import open_checkpoint


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor: names, shape, encoding and stored bytes."""

    name: str
    stored_name: str
    shape: tuple[int, ...]
    encoding: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What ``zenconvert inspect`` shows."""

    path: Path
    format: str
    architecture: str
    hyperparameters: Hyperparameters
    parameters: int
    bytes: int
    """Stored bytes of all tensors."""
    encodings: dict[str, tuple[int, int]]
    """Encoding → (tensors, bytes)."""
    files: tuple[Path, ...]
    tensors: tuple[TensorFacts, ...]
    warnings: tuple[str, ...] = ()
    """What is odd about the files, and how it was taken."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter."""
        return 8 * self.bytes / self.parameters

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        facts = asdict(self)
        facts["path"] = str(self.path)
        facts["files"] = [str(f) for f in self.files]
        facts["encodings"] = {
            name: {"tensors": count, "bytes": size}
            for name, (count, size) in self.encodings.items()
        }
        return {**facts, "bits_per_weight": self.bits_per_weight}


def inspect(source: str | Path, config: str | Path | None = None) -> Inspection:
    """Open a checkpoint and describe it; arguments and errors as in ``open_checkpoint``."""
    return describe(open_checkpoint(source, config))


def describe(checkpoint: Checkpoint) -> Inspection:
    """Describe an open checkpoint."""
    tensors = tuple(
        TensorFacts(t.name, t.stored.name, t.shape, str(t.encoding), t.nbytes)
        for t in checkpoint.tensors.values()
    )
    counts = Counter(t.encoding for t in tensors)
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.encoding] += tensor.bytes
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        architecture=checkpoint.architecture.id,
        hyperparameters=checkpoint.hyperparameters,
        parameters=sum(t.elements for t in checkpoint.tensors.values()),
        bytes=sum(t.bytes for t in tensors),
        encodings={name: (counts[name], sizes[name]) for name in sorted(counts)},
        files=checkpoint.files,
        tensors=tensors,
        warnings=checkpoint.warnings,
    )
