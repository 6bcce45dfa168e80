"""What is wanted of a checkpoint: one artifact, and the plans on the way to it.

Without a solver there is one plan, from the source to the output. With one there are two: the first
says which weights go to which grids; the second, once these are solved, where every byte goes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from zenconvert.calib.solvers.solution import ModuleReport
from zenconvert.errors import UsageError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Grid
from zenconvert.model.target import Options, Solver, Target
from zenconvert.planning.plan import Importance, Plan, Step, make_plan
from zenconvert.solve.importance import expected_importance

_NAME: Final = re.compile(r"\w[\w.+\-]*")  # fits into the name of a file


@dataclass(frozen=True)
class Variant:
    """One artifact of a production."""

    name: str
    """Unique in the production: letters, digits, and ``. _ + -`` after them."""
    out: Path
    """File (GGUF) or folder to write."""
    target: Target
    options: Options = field(default_factory=Options)
    solver: Solver | None = None
    """By default the target format's own where there are statistics, else ``rtn``."""
    largest_error: float | None = None
    """Fail when a module's weighted relative error is larger."""
    exact: bool = False
    """Refuse every lossy step."""
    allow_requantize: bool = False
    """Quantize weights that are already quantized."""

    def plan(self, checkpoint: Checkpoint, importance: Importance | None, threads: int) -> Plan:
        """The plan from the source's headers. Raises PlanError and UsageError."""
        return make_plan(
            checkpoint,
            self.target,
            self.options,
            name=self.out.name,
            threads=threads,
            importance=importance,
            exact=self.exact,
            allow_requantize=self.allow_requantize,
        )

    def plan_solved(
        self,
        checkpoint: Checkpoint,
        planned: Plan,
        modules: Mapping[str, ModuleReport],
    ) -> Plan:
        """The plan from the source with solved tensors over it, after the one from the source.

        Its steps say what happened to the source's own tensors.
        """
        given = replace(self, exact=False, allow_requantize=True)
        final = given.plan(checkpoint, expected_importance(checkpoint), planned.threads)
        return replace(final, steps=_told(final, modules))


def check_names(variants: Sequence[Variant]) -> None:
    """Raise UsageError for two variants of one name or output, and for odd names."""
    if odd := [variant.name for variant in variants if not _NAME.fullmatch(variant.name)]:
        raise UsageError(
            f"{odd[0]!r} is no name for a variant; expected letters, digits, and . _ + - after them"
        )
    for what, given in (
        ("are called", [variant.name for variant in variants]),
        ("are to be written to", [str(variant.out.absolute()) for variant in variants]),
    ):
        if twice := [name for name, count in Counter(given).items() if count > 1]:
            raise UsageError(f"several variants {what} {twice[0]}; each needs its own")


def grids_of(plan: Plan) -> dict[str, Grid]:
    """Neutral name → grid of every tensor that is not on it already, of grids that solvers fill."""
    return {
        part.name: choice.scheme or choice.encoding
        for choice in plan.choices
        if choice.scheme is not None or (choice.encoding.is_quantized and choice.lines is None)
        for part, found in zip(choice.parts, choice.done, strict=True)
        if found.action == "quantize" and not part.is_half and choice.change is None
    }


def _told(plan: Plan, modules: Mapping[str, ModuleReport]) -> tuple[Step, ...]:
    """The steps of a plan, with what the solver did to each tensor."""
    reports = {
        choice.name: modules[part.name]
        for choice in plan.choices
        for part in choice.parts
        if part.name in modules
    }
    return tuple(
        replace(step, why=f"{report.method}, weighted relative error {report.error:.3g}")
        if (report := reports.get(step.target)) is not None and step.to.is_quantized
        else step
        for step in plan.steps
    )
