"""The plan of a conversion: a pure function of headers, target and options.

Every output tensor part is one frozen :class:`Step`; refusals are gathered and raised together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.garbage import seldom_collected
from zenconvert.base.records import record
from zenconvert.base.stamps import Stamp
from zenconvert.errors import PlanError, UsageError, first_names
from zenconvert.formats.registry import format_named
from zenconvert.model import meaning
from zenconvert.model.allotment import Allotment
from zenconvert.model.checkpoint import Checkpoint, StoredPieces
from zenconvert.model.encoding import Encoding, Grouped
from zenconvert.model.grouped import GroupedCodec
from zenconvert.model.layout import Action, Choice, Layout
from zenconvert.model.meaning import Fact
from zenconvert.model.pieces import BAND_BYTES, ROW_UNIT
from zenconvert.model.target import Options, Target
from zenconvert.planning.judging import recoding, recoding_of_floats, refined
from zenconvert.planning.recoding import unchanged

Importance = Mapping[str, NDArray[np.float32]]
"""Neutral tensor name → weight of every input channel, f32[columns]."""

SLAB_ELEMENTS: Final = 1 << 21
"""Elements that a worker handles at a time."""
PACKED_ROWS: Final = 256
"""Fewest rows of a slab of packed integers."""
_BANDS: Final = 4  # two that are read and two that are written
_GROUPS: Final = (128, 64, 32, 16)
"""What may fit where another group does not, the largest first."""
_BASE_RAM: Final = 320_000_000  # interpreter, numpy, numba and loaded kernels
_SLAB_COPIES: Final = 16  # bytes per slab element: stored, float32, weights and encoded rows


@record
class Step:
    """What happens to one source tensor."""

    source: str
    """Name in the source file."""
    target: str
    """Name in the output file."""
    from_: Encoding | None
    """None for a tensor computed from the config."""
    to: Encoding
    shape: tuple[int, ...]
    """Logical shape of the source tensor."""
    bytes: int
    """Bytes that it takes in the output."""
    action: Action
    exact: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "source": self.source,
            "target": self.target,
            "from": str(self.from_) if self.from_ is not None else "config",
            "to": str(self.to),
            "shape": list(self.shape),
            "bytes": self.bytes,
            "action": self.action,
            "exact": self.exact,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, where every byte goes, and what it will take."""

    target: Target
    steps: tuple[Step, ...]
    facts: tuple[Fact, ...]
    """What becomes of what the config says beside sizes."""
    layout: Layout
    threads: int
    warnings: tuple[str, ...] = ()
    """What is odd about the source, and how it was taken."""
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    """The files of the source, as they were when it was opened."""
    allotment: Allotment | None = None
    """The types that were chosen by what errors cost."""

    @property
    def choices(self) -> Iterator[Choice]:
        """Every tensor of the output, in the order of the files."""
        return (slot.choice for file in self.layout.files for slot in file.slots)

    @property
    def lost(self) -> tuple[Fact, ...]:
        """Facts without which the target computes something else."""
        return tuple(fact for fact in self.facts if not fact.exact)

    @property
    def output_bytes(self) -> int:
        """Exact size of everything that will be written."""
        return self.layout.size

    @property
    def exact(self) -> bool:
        """True when every step is exact and no fact is lost."""
        return all(step.exact for step in self.steps) and not self.lost

    @property
    def peak_ram_bytes(self) -> int:
        """Upper estimate of resident memory: a fixed part, one slab per worker, and the bands of
        what lies in columns."""
        widest = max((s.shape[-1] for s in self.steps if s.shape), default=0)
        slab = max(SLAB_ELEMENTS, widest * 256)
        headers = sum(len(data) for file in self.layout.files for _, data in file.literals)
        bands = 0
        if any(map(_may_lie_in_columns, self.choices)):
            bands = _BANDS * min(BAND_BYTES, max(step.bytes for step in self.steps))
        return _BASE_RAM + 4 * headers + bands + self.threads * slab * _SLAB_COPIES

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as ``zenconvert plan --json`` prints it."""
        return {
            "target": str(self.target),
            "output_bytes": self.output_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
            "exact": self.exact,
            "files": [{"name": f.name, "bytes": f.size} for f in self.layout.files],
            "steps": [step.as_dict() for step in self.steps],
            "warnings": list(self.warnings),
            "facts": [fact.as_dict() for fact in self.facts],
            **({"allotment": self.allotment.as_dict()} if self.allotment is not None else {}),
        }


def _may_lie_in_columns(choice: Choice) -> bool:
    """Whether rows are columns of a file, here or there."""
    if choice.codec is not None or choice.transposed:
        return True
    stored = [part.stored for part in choice.parts]
    return any(
        isinstance(one, StoredPieces) or getattr(one, "stride", None) is not None for one in stored
    )


@seldom_collected()
def make_plan(
    checkpoint: Checkpoint,
    target: Target,
    options: Options,
    *,
    name: str,
    threads: int,
    importance: Importance | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
) -> Plan:
    """Plan a conversion from headers alone.

    ``name`` is the output's file or folder name. Raises PlanError with every refused step and
    UsageError for a target or option that makes no sense.
    """
    writer = format_named(target.format)
    _check_size(target, options)
    if options.mtp == "drop":
        checkpoint = replace(checkpoint, predicting={})
    facts = (
        *meaning.towers(checkpoint, text_only=options.text_only),
        *meaning.further(checkpoint, keeps=writer.keeps_further),
        *writer.facts(checkpoint, target, options),
    )
    if refused := [_lost(fact, checkpoint) for fact in facts if fact.refused]:
        raise PlanError(refused)
    choices = writer.choose(checkpoint, target, options, importance=importance is not None)
    _check_patterns(options, choices)
    choices = [_judged(choice) for choice in choices]
    steps = tuple([step for choice in choices for step in _steps(choice)])
    found = _problems(choices, importance, exact=exact, allow_requantize=allow_requantize)
    lost = [_lost(fact, checkpoint) for fact in facts if exact and not fact.exact]
    if problems := [*lost, *_gathered(found)]:
        raise PlanError(problems)
    layout = writer.lay_out(checkpoint, target, choices, options, name)
    return Plan(
        target, steps, facts, layout, threads, checkpoint.warnings, checkpoint.stamps,
        options.allotment,
    )  # fmt: skip


def _check_size(target: Target, options: Options) -> None:
    """Raise UsageError for types that were to be chosen by a size and are not, and the reverse."""
    if not target.is_auto and (options.size is not None or options.menu):
        given = "--size" if options.size is not None else "--types"
        raise UsageError(f"{given} goes with targets of the type auto, e.g. --to gguf:auto")
    if target.is_auto and options.allotment is None:
        raise UsageError(
            f"{target} chooses types by what errors cost: give --calibrate, or --stats with a file "
            "of zenconvert calibrate --for gptq --fisher; recipes of releases cannot have it yet"
        )


def _check_patterns(options: Options, choices: Sequence[Choice]) -> None:
    """Raise UsageError for patterns that pick no tensor, or vectors alone that keep their type."""
    for pattern, kind in options.tensor_types:
        matching = [choice for choice in choices if re.search(pattern, choice.name)]
        if not matching:
            longest = max((c for c in choices if len(c.shape) > 1), key=lambda c: len(c.name))
            raise UsageError(
                f"--tensor-type {pattern}={kind}: no tensor of the output has a name that "
                f"{pattern!r} matches; they are called like {longest.name}"
            )
        heeded = any(f"the name matches {pattern!r}" in choice.why for choice in matching)
        if not heeded and all(len(choice.shape) < 2 for choice in matching):
            names = first_names([choice.name for choice in matching])
            raise UsageError(
                f"--tensor-type {pattern}={kind}: it matches vectors alone, which keep their type "
                f"in this format: {names}"
            )


def _lost(fact: Fact, checkpoint: Checkpoint) -> str:
    """Why a fact is a reason to refuse."""
    return f"{checkpoint.path}: {fact.name} is {fact.value!r:.80}: {fact.why}"


def _judged(choice: Choice) -> Choice:
    """A choice whose parts are looked at as closely as it takes to say what becomes of them."""
    if choice.sheds_zeros and (grid := choice.encoding.grouped) is not None:
        choice = _without_zeros(choice, grid)
    if (plainly := recoding_of_floats(choice)) is not None:
        return choice.judged(plainly, plainly)
    parts = tuple([refined(part, choice) for part in choice.parts])
    done = tuple([recoding(*unchanged(part, choice)) for part in parts])
    told = tuple(
        [
            recoding(replace(part, encoding=part.source_encoding), choice)
            if part.origin or part.change or choice.change
            else found
            for part, found in zip(parts, done, strict=True)
        ]
    )
    if any(new is not old for new, old in zip(parts, choice.parts, strict=True)):
        choice = replace(choice, parts=parts)
    return choice.judged(told, done)


def _without_zeros(choice: Choice, encoding: Grouped) -> Choice:
    """The choice on a symmetric grid, where its parts are on one and only their file is not."""
    if encoding.symmetric or any(part.encoding.grouped is None for part in choice.parts):
        return choice
    plain = replace(choice, encoding=replace(encoding, symmetric=True))
    parts = tuple(refined(part, plain) for part in choice.parts)
    return plain if all(recoding(part, plain).exact for part in parts) else choice


def _steps(choice: Choice) -> list[Step]:
    if choice.derived is not None:
        size = len(choice.derived)
        return [
            Step(
                "config.json", choice.name, None, choice.encoding, choice.shape, size, "repack",
                True, choice.why,
            )
        ]  # fmt: skip
    size, alone = choice.nbytes, len(choice.parts) == 1
    whole = 0 if alone else sum(part.elements for part in choice.parts)
    return [
        Step(
            part.stored.name, choice.name, part.source_encoding, choice.encoding, part.shape,
            size if alone else size * part.elements // whole,
            found.action, found.exact, _joined(found.why, choice.why),
        )
        for part, found in zip(choice.parts, choice.told, strict=True)
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _gathered(found: Iterator[tuple[str, str]]) -> list[str]:
    """One line for all tensors that have the same trouble: how many, and the first of them."""
    gathered: dict[str, list[str]] = {}
    for name, problem in found:
        gathered.setdefault(problem, []).append(name)
    return [
        f"{names[0]}: {problem}"
        if len(names) == 1
        else f"{len(names)} tensors, {first_names(names)}: {problem}"
        for problem, names in gathered.items()
    ]


def _problems(
    choices: list[Choice],
    importance: Importance | None,
    *,
    exact: bool,
    allow_requantize: bool,
) -> Iterator[tuple[str, str]]:
    """Names of output tensors, and why they cannot be made."""
    hint = _fitting_group(choices)
    for choice in choices:
        target = choice.encoding
        grid = target.grouped
        if not target.can_be_written and any(p.encoding != target for p in choice.parts):
            yield choice.name, f"{target} can be read and not yet written"
        if grid is None and target.is_quantized:
            yield from _importance_problems(choice, importance)
        if grid is not None and choice.codec is not None:
            reason = _refusal(choice.codec, grid, choice.shape)
            if reason is not None:
                name = choice.codec.name
                yield choice.name, f"{target} cannot be stored as {name}: {reason}{hint}"
            elif len(choice.parts) == 1:
                pass  # it begins at its first row
            elif grid.ordered:
                yield choice.name, "its rows are those of several modules, which have no one order"
            elif any(start % ROW_UNIT for start in choice.starts):
                rows = " + ".join(str(part.rows) for part in choice.parts)
                yield choice.name, f"{rows} rows of several modules do not begin at whole words"
        again = target.is_quantized and not allow_requantize
        for part, found in zip(choice.parts, choice.told, strict=True):
            if exact and not found.exact:
                yield choice.name, f"not exact: {found.why}"
            if again and found.action == "quantize" and part.encoding.is_quantized:
                yield (
                    choice.name,
                    f"{part.encoding} → {target} quantizes a second time "
                    f"({found.why}); start from the original weights, or allow it with "
                    "--allow-requantize",
                )


@lru_cache(maxsize=256)  # a model has few kinds of tensors, and as many as it likes of each
def _refusal(codec: GroupedCodec, grid: Grouped, shape: tuple[int, ...]) -> str | None:
    return codec.refuses(grid, shape)


def _fitting_group(choices: list[Choice]) -> str:
    """Which group every matrix takes, where the one that was asked for does not fit some."""
    grids = [
        (choice.codec, grid, choice.shape)
        for choice in choices
        if choice.codec is not None and (grid := choice.encoding.grouped) is not None
    ]
    if all(not grid.group or shape[-1] % grid.group == 0 for _, grid, shape in grids):
        return ""
    for group in _GROUPS:
        if all(codec.refuses(replace(e, group=group), s) is None for codec, e, s in grids):
            return f"; groups of {group} fit every matrix"
    return "; no group of 16 or more fits every matrix: keep some in floats with --tensor-type"


def _importance_problems(
    choice: Choice, importance: Importance | None
) -> Iterator[tuple[str, str]]:
    given = importance or {}
    changed = [part for part in choice.parts if part.encoding != choice.encoding]
    if choice.needs_importance and any(part.name not in given for part in changed):
        yield (
            choice.name,
            f"{choice.encoding} needs importance weights and there are none: at so few bits the "
            "result would be garbage; give an imatrix file that covers it with "
            "--importance, or take --stats or --calibrate",
        )
    for part in choice.parts:
        weights = importance.get(part.name) if importance is not None else None
        if weights is not None and weights.shape != (part.columns,):
            yield (
                choice.name,
                f"{weights.size} importance weights were given for rows of {part.columns}",
            )
