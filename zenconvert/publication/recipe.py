"""A release's recipe: what is made of which model, how it is measured, and where it goes.

A TOML file. The smallest one that works::

    [source]
    path = "builtin:zen-nano"
    [output]
    folder = "release"
    [[variant]]
    target = "gguf:q4_k_m"

Relative paths are relative to the recipe's folder. ``recipe_reader`` has every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zenconvert.formats.registry import format_named
from zenconvert.model.target import Options, Solver, Target
from zenconvert.publication.toml_lines import Lines, Place
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.solve.variants import Variant

THREADS: Final = 4
"""Threads of a job by default; the same everywhere, since float sums depend on them."""
SOURCE: Final = "the source"
SAMPLES: Final = "'samples' in [calibration]"
SPLIT: Final = 50_000_000_000
"""Largest GGUF file by default, bytes."""


@dataclass(frozen=True, slots=True)
class Source:
    """The model that is released."""

    path: str
    """A folder, a file, a Hub id or ``builtin:NAME``, as the recipe has it."""
    location: str
    """The same for whoever is not in the recipe's folder: absolute paths, and the revision."""
    name: str
    """What files are called after."""
    revision: str | None = None
    base_model: str | None = None
    licence: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pre_tokenizer: str | None = None
    """Of a GGUF file that does not say how it cuts text."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where the release goes."""

    folder: Path
    split: int = SPLIT
    """Largest GGUF file, bytes."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the quantizers learn from."""

    enabled: bool = True
    calibrating: Calibrating = field(default_factory=Calibrating)
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Verification:
    """How every variant is measured."""

    engines: tuple[str, ...] = ("all",)
    """Empty: nothing is measured."""
    context: int = 512
    text: Path | None = None
    """The bundled evaluation texts where None."""
    languages: tuple[str, ...] | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Gate:
    """What judges the measurements."""

    policy: str = "default"
    """``default`` or an absolute path."""
    against: Path | None = None
    """``report.json`` of the release before, judged against too."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """Where a release is uploaded to."""

    hub: str
    """User or organisation on the Hub; every shelf has a repository of its own."""
    private: bool = False
    allow: tuple[str, ...] = ("PASS",)
    """Verdicts that may be published."""


@dataclass(frozen=True, slots=True)
class VariantRecipe:
    """One artifact to make."""

    name: str
    target: Target
    engines: tuple[str, ...]
    options: Options = field(default_factory=Options)
    solver: Solver | None = None
    largest_error: float | None = None
    exact: bool = False
    allow_requantize: bool = False
    calibrate: bool = True
    """Use the statistics, where there are any."""

    @property
    def shelf(self) -> str:
        """The folder below the release's; all files of a format without folders share one."""
        form = format_named(self.target.format)
        return form.label if form.is_file else self.name

    @property
    def is_file(self) -> bool:
        """Whether a reader opens a file rather than the shelf's folder."""
        return format_named(self.target.format).is_file

    def out(self, release: str) -> str:
        """The artifact below the release's folder, with ``/``."""
        suffix = format_named(self.target.format).suffix
        return self.name if suffix is None else f"{self.shelf}/{release}-{self.name}{suffix}"


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, its values checked one by one and not yet against the world."""

    path: Path
    data: bytes
    """The file as it was read."""
    source: Source
    output: Output
    variants: tuple[VariantRecipe, ...]
    calibration: Calibration = field(default_factory=Calibration)
    verification: Verification = field(default_factory=Verification)
    gate: Gate = field(default_factory=Gate)
    threads: int = THREADS
    publishing: Publishing | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    """Variant → its table in the file."""
    lines: Lines = field(default_factory=lambda: Lines(""), compare=False)

    @property
    def inputs(self) -> dict[str, str | Path | None]:
        """What is read from files, by what a recipe calls it; None is nothing."""
        samples, gate = self.calibration.calibrating.samples, self.gate
        return {
            SOURCE: self.source.location,
            SAMPLES: samples,
            "'text' in [verify]": self.verification.text,
            "'policy' in [gate]": None if gate.policy == "default" else gate.policy,
            "'against' in [gate]": gate.against,
        }

    def variant(self, name: str) -> VariantRecipe:
        """The variant of a name, which must be there."""
        return next(v for v in self.variants if v.name == name)

    def path_of(self, variant: VariantRecipe) -> Path:
        """Where the artifact comes to stand."""
        return self.output.folder / variant.out(self.source.name)

    def production(self, variant: VariantRecipe) -> Variant:
        """The variant as those who make it want it."""
        return Variant(
            name=variant.name,
            out=self.path_of(variant),
            target=variant.target,
            options=variant.options,
            solver=variant.solver,
            largest_error=variant.largest_error,
            exact=variant.exact,
            allow_requantize=variant.allow_requantize,
        )


def default_name(target: Target, default_type: str) -> str:
    """What people call a target: ``Q4_K_M`` of GGUF, ``GPTQ-w4g128`` and the like of others."""
    kind, form = target.type or default_type, format_named(target.format)
    return kind.upper() if form.is_file else f"{form.label}-{kind}"
