"""What was measured: which bytes, and what their headers say. Never what a user says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zenconvert.base.source_files import reading
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.encoding import Encoding
from zenconvert.verification.digests import digest, file_digest


@dataclass(frozen=True, slots=True)
class Artifact:
    """Which bytes were measured."""

    path: str
    """As the user named it."""
    format: str
    sha256: str
    """Of the weight files: one file's digest, or the digest of ``digest  name`` lines."""

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return {"path": self.path, "format": self.format, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Facts:
    """What an artifact is, from its headers."""

    architecture: str
    parameters: int
    bytes: int
    """Stored bytes of all tensors."""
    encoding: str
    """The one that holds most numbers of the linear layers' weights."""
    bits: int
    """Its nominal bits: 4 for ``q4_k``, ``iq4_xs`` or ``w4g128``, 16 for ``bf16``."""
    encodings: Mapping[str, int]
    """Encoding → numbers stored in it, over all tensors."""
    vocabulary: int
    """Logits of a position."""
    side_files_sha256: str
    """Of the files beside the weights (config, tokenizer; no README.md, which a release replaces),
    as ``digest  name`` lines; empty where the format has none."""
    predicted_kl: float | None = None
    """The mean divergence by which its types were chosen, nats per token; None of other files."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter, over all tensors."""
        return 8 * self.bytes / self.parameters

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        facts = {key: value for key, value in asdict(self).items() if value is not None}
        return {**facts, "bits_per_weight": self.bits_per_weight}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Facts:
        """The inverse of :meth:`as_dict`. Raises KeyError or TypeError."""
        return cls(**{k: v for k, v in value.items() if k != "bits_per_weight"})


def artifact(checkpoint: Checkpoint, label: str) -> Artifact:
    """Digest the weight files of a checkpoint; ``label`` is how the user named it."""
    return Artifact(label, checkpoint.format, digest(checkpoint.files))


def facts_of(checkpoint: Checkpoint) -> Facts:
    """Facts of a checkpoint, from its headers and side files."""
    linear = {
        name.name
        for name in checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
        if name.module.role == "linear" and name.is_weight
    }
    tensors = checkpoint.tensors.values()
    encodings: Counter[str] = Counter()
    of_linear: Counter[Encoding] = Counter()
    for tensor in tensors:
        encodings[str(tensor.encoding)] += tensor.elements
        if tensor.name in linear:
            of_linear[tensor.encoding] += tensor.elements
    main = of_linear.most_common(1)[0][0]
    return Facts(
        architecture=checkpoint.architecture.id,
        parameters=sum(tensor.elements for tensor in tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
        encoding=str(main),
        bits=main.nominal_bits,
        encodings=dict(sorted(encodings.items())),
        vocabulary=checkpoint.hyperparameters.vocab,
        side_files_sha256=_side_files(checkpoint),
        predicted_kl=checkpoint.metadata.predicted_kl,
    )


def _side_files(checkpoint: Checkpoint) -> str:
    files = sorted((checkpoint.side_files or {}).items())
    files = [(name, path) for name, path in files if name != "README.md"]
    if not files:
        return ""
    lines = ""
    for name, path in files:
        with reading(path):
            lines += f"{file_digest(path)}  {name}\n"
    return hashlib.sha256(lines.encode()).hexdigest()
