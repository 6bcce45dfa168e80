"""What is known of a release once its variants are made: all that cards and provenance say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zenconvert.formats.registry import format_named

if TYPE_CHECKING:
    from zenconvert.verification.gate import Verdict
    from zenconvert.verification.report import Report


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The model that a release is made from."""

    path: str
    """As the recipe names it: a folder, a Hub id or ``builtin:NAME``."""
    revision: str | None
    """Commit of the Hub repository."""
    sha256: str
    """Of the weight files, as reports say it."""
    name: str
    """Short name, without organisation: ``Qwen1.5-110B-Chat``."""
    base_model: str | None
    """Hub id for the model tree; None where the source has none and the recipe names none."""
    licence: str | None
    """SPDX or Hub identifier."""
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    architecture: str
    model_type: str
    parameters: int
    context: int
    """Positions that the model takes."""
    chat_template: str | None
    special: Mapping[str, str] = field(default_factory=dict)
    """``bos``, ``eos``, ``pad``, ``unk`` → token."""


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """The texts that quantizers learnt from."""

    samples: str
    """Where they come from."""
    samples_sha256: str
    """Of the token ids."""
    statistics_sha256: str
    """Of the statistics file."""
    tokens: Mapping[str, int]
    """Language → tokens read."""
    seed: int


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """One artifact of a release."""

    name: str
    """Unique in the release, as people call it: ``Q4_K_M``, ``GPTQ-w4g128``."""
    target: str
    """``gguf:q4_k_m``."""
    format: str
    shelf: str
    """Folder below the release's: all GGUF files share ``GGUF``; a variant that is a folder has one
    of its own, so that ``from_pretrained`` takes it as it is."""
    files: tuple[str, ...]
    """Paths below the shelf, with ``/``; of a split GGUF file the first part first."""
    size: int
    """Bytes of all files."""
    exact: bool
    losses: tuple[str, ...]
    """What was lossy, one line each kind of step."""
    report: Report | None
    """None where it could not be made or measured."""
    verdict: Verdict | None
    error: str | None = None
    """Why it could not be made, in the words of the error."""

    @property
    def label(self) -> str:
        """How reports of a release name the artifact: its path below the release's folder."""
        return f"{self.shelf}/{self.files[0]}" if self.is_file and self.files else self.shelf

    @property
    def is_made(self) -> bool:
        """Whether there are files of it."""
        return self.error is None and bool(self.files)

    @property
    def is_file(self) -> bool:
        """Whether a reader opens the first file rather than the shelf's folder."""
        return format_named(self.format).is_file

    def as_dict(self) -> dict[str, Any]:
        """JSON form, without report and verdict."""
        return {
            "name": self.name,
            "target": self.target,
            "format": self.format,
            "shelf": self.shelf,
            "files": list(self.files),
            "size": self.size,
            "exact": self.exact,
            "losses": list(self.losses),
            "outcome": self.outcome,
            "error": self.error,
        }

    @property
    def outcome(self) -> str:
        """The verdict's outcome; ``UNMEASURED`` without one, ``ERROR`` where making it failed."""
        if self.error is not None:
            return "ERROR"
        return str(self.verdict.outcome) if self.verdict is not None else "UNMEASURED"


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """A whole release."""

    name: str
    source: SourceFacts
    calibration: CalibrationFacts | None
    """None where no variant needed statistics."""
    policy: str
    policy_sha256: str
    recipe: bytes
    """The recipe file as it was read."""
    version: str
    """Of zenconvert."""
    variants: tuple[VariantFacts, ...]
    policy_file: bytes = b""
    """The policy file as it was read; empty stands for the default policy's."""
    hub: str | None = None
    """User or organisation on the Hub that the shelves are for; None where nobody said."""

    @property
    def shelves(self) -> dict[str, tuple[VariantFacts, ...]]:
        """Shelf → its variants, in the recipe's order."""
        found: dict[str, list[VariantFacts]] = {}
        for variant in self.variants:
            found.setdefault(variant.shelf, []).append(variant)
        return {shelf: tuple(variants) for shelf, variants in found.items()}


def preferred(variants: Sequence[VariantFacts]) -> VariantFacts:
    """The variant that most people want: the smallest that passed without a warning, else that
    passed, else the smallest."""
    passed = [variant for variant in variants if variant.outcome == "PASS"]
    clean = [variant for variant in passed if variant.verdict and not variant.verdict.warnings]
    return min(clean or passed or variants, key=lambda variant: variant.size)
