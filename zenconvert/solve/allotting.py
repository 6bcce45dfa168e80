"""Types chosen by what errors cost: ``gguf:auto`` with a size becomes a type for every tensor.

Every tensor that the format lets have several types is rounded to each of them in turn, what that
costs is told by :mod:`zenconvert.solve.costs`, and :mod:`zenconvert.solve.allocation` chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import TYPE_CHECKING, Final

from zenconvert.base.progress import Progress
from zenconvert.calib.methods import METHODS
from zenconvert.errors import UsageError
from zenconvert.formats.registry import FORMATS, format_named
from zenconvert.model.allotment import Allotment, Allotted
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Choice
from zenconvert.model.target import Options, Target
from zenconvert.solve.allocation import Candidate, allocate, largest, smallest
from zenconvert.solve.importance import expected_importance
from zenconvert.solve.variants import Variant

if TYPE_CHECKING:
    from zenconvert.calib.statistics_reader import Statistics
    from zenconvert.model.target import Solver
    from zenconvert.solve.costs import Costs

_SOLVED: Final = "gptq+fisher"
"""What a file may say of its solver; the size is counted with it."""


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the output that can have several types."""

    choices: tuple[Choice, ...]
    losses: tuple[float | None, ...]
    """What each costs; None where nothing is known of it."""

    @property
    def candidates(self) -> list[Candidate]:
        """For the allocation."""
        return [Candidate(c.nbytes, x or 0) for c, x in zip(self.choices, self.losses, strict=True)]

    def allotted(self, place: int) -> Allotted:
        """The tensor with one of its types."""
        choice = self.choices[place]
        kind = str(choice.encoding)
        return Allotted(choice.name, kind, choice.nbytes, self.losses[place])


def stand_in(variant: Variant) -> Variant:
    """A variant of one type, whose files have the same names, to see what else stands in the way.

    Raises UsageError for options that do not go together.
    """
    if variant.options.size is None:
        raise UsageError(
            f"{variant.target} needs a size: --size 4.8bpw (bits per weight), or --size 21G"
        )
    if variant.options.pure:
        raise UsageError(f"{variant.target} gives every tensor a type of its own: no --pure")
    menu = menu_of(variant)
    return replace(variant, target=replace(variant.target, type=menu[-1]), options=_one(variant))


def menu_of(variant: Variant) -> tuple[str, ...]:
    """The types to choose from. Raises UsageError where a format knows no such target."""
    form = format_named(variant.target.format)
    if not form.menu:
        known = ", ".join(f"{name}:auto" for name, one in FORMATS.items() if one.menu)
        raise UsageError(f"{variant.target}: there is no such target; known is {known}")
    return variant.options.menu or form.menu


def allotted(
    variant: Variant,
    checkpoint: Checkpoint,
    statistics: Statistics,
    *,
    solver: Solver,
    device: str,
    threads: int,
    stage: Progress,
) -> Variant:
    """The variant with a type for every tensor, within its size.

    Raises UsageError for a size out of reach, for a type that the format does not write, and for
    statistics without second moments or Fisher information; and as :meth:`Variant.plan`.
    """
    from zenconvert.solve.costs import Costs

    stand_in(variant)
    solves = METHODS[solver].needs_statistics
    costs = Costs(checkpoint, statistics, device)
    every = _choices(variant, checkpoint)
    free = {n: c for n, c in every.items() if any(one.encoding.is_quantized for one in c)}
    tensors = []
    for number, choices in enumerate(free.values(), 1):
        tensors.append(_looked_at(choices, costs, solves=solves))
        stage("predicting", number, len(free))
    counted = replace(checkpoint, solver=_SOLVED if solves else None)
    ones = expected_importance(checkpoint)
    fixed = [choices[0] for name, choices in every.items() if name not in free]
    return _within(
        variant, tensors, fixed, lambda one: one.plan(counted, ones, threads).output_bytes
    )


def _one(variant: Variant) -> Options:
    return replace(variant.options, size=None, menu=())


def _choices(variant: Variant, checkpoint: Checkpoint) -> dict[str, tuple[Choice, ...]]:
    """Output tensor → how it would be stored in each type of the menu, without repetitions."""
    form, importance = format_named(variant.target.format), expected_importance(checkpoint)
    found: dict[str, dict[str, Choice]] = {}
    for kind in menu_of(variant):
        options = replace(_one(variant), pure=True)
        target = Target(form.name, kind)
        for choice in form.choose(checkpoint, target, options, importance=True):
            found.setdefault(choice.name, {})[str(choice.encoding)] = choice
    return {name: _possible(tuple(c.values()), importance) for name, c in found.items()}


def _possible(choices: tuple[Choice, ...], importance: Mapping[str, object]) -> tuple[Choice, ...]:
    """Those that are not refused for want of importance weights, if there are any."""
    left = [
        choice
        for choice in choices
        if not choice.needs_importance or all(part.name in importance for part in choice.parts)
    ]
    return tuple(left) or choices


def _looked_at(choices: tuple[Choice, ...], costs: Costs, *, solves: bool) -> _Tensor:
    """A tensor with what every type costs; where nothing is known, with the largest alone."""
    encodings, sums = [choice.encoding for choice in choices], [0.0] * len(choices)
    if all(choice.change is None for choice in choices):
        for part in choices[0].parts:
            found = costs.losses(part, encodings, solves=solves)
            sums = [a + b for a, b in zip(sums, found, strict=True)]
        if all(map(isfinite, sums)):
            return _Tensor(choices, tuple(sums))
    return _Tensor((max(choices, key=lambda choice: choice.nbytes),), (None,))


def _within(
    variant: Variant,
    tensors: Sequence[_Tensor],
    fixed: Sequence[Choice],
    size: Callable[[Variant], int],
) -> Variant:
    """The variant whose types lose least in its size."""
    budget, candidates = variant.options.size, [one.candidates for one in tensors]
    assert budget is not None
    least, most = smallest(candidates), largest(candidates)
    if budget.bits is not None:
        numbers = sum(prod(choice.shape) for choice in (*fixed, *(t.choices[0] for t in tensors)))
        whole = int(budget.bits * numbers / 8)
        around = sum(choice.nbytes for choice in fixed)
        _check(variant, whole, least + around, most + around, 8 / numbers, "bpw")
        return _given(variant, tensors, allocate(candidates, whole - around))
    assert budget.nbytes is not None
    around = size(_given(variant, tensors, allocate(candidates, least))) - least
    _check(variant, budget.nbytes, least + around, most + around, 1, " bytes")
    limit = budget.nbytes - around
    while True:  # files pad tensors, which takes a few bytes that depend on the types
        found = _given(variant, tensors, allocate(candidates, max(limit, least)))
        if (over := size(found) - budget.nbytes) <= 0 or limit <= least:
            return found
        limit -= over


def _check(variant: Variant, asked: int, least: int, most: int, unit: float, name: str) -> None:
    """Raise UsageError for a size that is out of reach."""
    if least <= asked <= most:
        return
    low, high = f"{least * unit:.7g}{name}", f"{most * unit:.7g}{name}"
    what = "too little" if asked < least else "more than can be filled"
    menu = ", ".join(menu_of(variant))
    raise UsageError(
        f"{variant.target} --size {variant.options.size}: that is {what}; with the types {menu} "
        f"the smallest is {low}, the largest that gains anything is {high}; ask for a size between "
        "them, or name others with --types"
    )


def _given(variant: Variant, tensors: Sequence[_Tensor], chosen: Sequence[int]) -> Variant:
    """The variant with these types."""
    found = [tensor.allotted(place) for tensor, place in zip(tensors, chosen, strict=True)]
    weights: Counter[str] = Counter()
    for tensor, one in zip(tensors, found, strict=True):
        weights[one.type] += prod(tensor.choices[0].shape)
    blocks = {str(c.encoding) for t in tensors for c in t.choices if c.encoding.is_quantized}
    common = max(sorted(blocks) or menu_of(variant), key=lambda kind: weights[kind])
    allotment = Allotment(common, tuple(found))
    return replace(variant, options=replace(variant.options, allotment=allotment))
