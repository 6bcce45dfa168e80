"""Every error that zenconvert raises on purpose.

::

    ZenError                           exit code 1
    ├── UsageError                     2   a target, option or combination that makes no sense
    │   └── RecipeError                    a release's recipe is wrong; holds every mistake found
    ├── PlanError                      2   the plan was refused; holds every problem found
    ├── OutputExists                   2   the output is there already (also a FileExistsError)
    ├── Unsupported                    3   a valid thing that zenconvert does not handle
    │   ├── UnknownArchitecture            no architecture row for this model
    │   ├── UnknownTokenizer               no rule for this tokenizer
    │   └── UnsupportedEncoding            no codec for this tensor encoding
    ├── InvalidInput                   4   also a ValueError; the input is broken or unsafe
    │   ├── CorruptFile                    a file breaks its own format's rules
    │   ├── UnsafePath                     a reference that leaves the checkpoint's folder
    │   ├── MissingTensor                  the model needs a tensor that is not there
    │   ├── UnexpectedTensor               a tensor that the architecture does not know
    │   ├── NotFinite                      a model computes something that is no number
    │   ├── BadSignature                   a signature that is not of these files and this key
    │   ├── ReportMismatch                 a report is not about the files that it names
    │   └── SourceNotFound                 no checkpoint at this path or hub id
    ├── NotEnoughResources             5   memory or disk would not suffice
    ├── MissingDependency              2   an optional package is not installed
    ├── EngineFailed                   6   an engine does not work on this machine, or hangs
    ├── ConversionFailed               1   an operation that should have worked did not
    ├── ReleaseFailed                  1   a variant of a release could not be made or measured
    ├── PublishingFailed               8   a release could not be put where it should go
    ├── GateFailed                     1   an artifact has moved further than the policy allows
    └── GateInconclusive               6   the measurement cannot tell, or cannot be believed

A message says what is wrong, where (file, tensor, offset), what was expected and what was found,
and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_LONGEST: Final = 1200
_MOST_LINES: Final = 300


def several(count: int, one: str, many: str) -> str:
    """A count and its noun, with what else depends on the number: ``1 tensor is``, ``2 tensors
    are``."""
    return f"{count} {one if count == 1 else many}"


def first_names(names: Sequence[str], count: int = 3) -> str:
    """The names themselves, or the first of them where there are more."""
    head = "" if len(names) == 1 else "the first are " if len(names) > count else ""
    return head + ", ".join(names[:count])


class InputWarning(UserWarning):
    """What is odd about an input, and how it was taken."""


class ZenError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what the CLI ends with."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; what input made longer than anybody reads is cut in the middle."""
        lines = super().__str__().split("\n")
        if len(lines) > _MOST_LINES:
            left = len(lines) - _MOST_LINES
            lines[_MOST_LINES:] = [f"  … and {left} lines more"]
        return "\n".join(_cut(line) for line in lines)


def _cut(line: str) -> str:
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 4 :]}"


class ConversionFailed(ZenError):
    """An operation that should have worked did not (a write failed, a worker died)."""


class UsageError(ZenError):
    """A target, option or combination of options that makes no sense."""

    exit_code = 2


class RecipeError(UsageError):
    """A release's recipe is wrong. ``problems`` holds every mistake as ``(line, text)``."""

    def __init__(self, path: str, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = tuple(sorted(problems))
        count = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "\n".join(f"  - line {line}: {text}" for line, text in self.problems)
        super().__init__(f"{path}: the recipe has {count}:\n{lines}")


class PlanError(ZenError):
    """The plan was refused. ``problems`` holds every reason found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        head = (
            "the conversion was refused"
            if len(problems) == 1
            else (f"the conversion was refused for {len(problems)} reasons")
        )
        super().__init__(head + ":\n" + "\n".join(f"  - {p}" for p in problems))

    def __reduce__(self) -> tuple[type[PlanError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)  # errors travel between processes


class OutputExists(ZenError, FileExistsError):
    """The output is there already and ``--force`` was not given."""

    exit_code = 2


class MissingDependency(ZenError):
    """An optional package is needed and not installed; the message names the extra."""

    exit_code = 2


class Unsupported(ZenError):
    """A valid thing that zenconvert does not handle."""

    exit_code = 3


class UnknownArchitecture(Unsupported):
    """No architecture row describes this model."""


class UnknownTokenizer(Unsupported):
    """No rule describes this tokenizer."""


class UnsupportedEncoding(Unsupported):
    """No codec for this tensor encoding."""


class InvalidInput(ZenError, ValueError):
    """The input is broken or unsafe."""

    exit_code = 4


class CorruptFile(InvalidInput):
    """A file breaks its own format's rules."""


class UnsafePath(InvalidInput):
    """A reference inside a checkpoint that points outside its folder."""


class MissingTensor(InvalidInput):
    """The model needs a tensor that is not there."""


class UnexpectedTensor(InvalidInput):
    """A tensor that the architecture does not know."""


class NotFinite(InvalidInput):
    """A model computes something that is no number."""


class BadSignature(InvalidInput):
    """A signature that is not of these files and this key."""


class ReportMismatch(InvalidInput):
    """A report is not about the files that it names."""


class SourceNotFound(InvalidInput):
    """No checkpoint at this path or hub id."""


class NotEnoughResources(ZenError):
    """Memory or disk would not suffice."""

    exit_code = 5


class EngineFailed(ZenError):
    """An engine does not work on this machine, or hangs: nothing is known of the artifact in it."""

    exit_code = 6


class ReleaseFailed(ZenError):
    """A variant of a release could not be made or measured; the others could."""


class PublishingFailed(ZenError):
    """A release could not be put where it should go; what was there before is still there."""

    exit_code = 8


class GateFailed(ZenError):
    """An artifact has moved further from its reference than the policy allows."""


class GateInconclusive(ZenError):
    """The measurement cannot tell (INCONCLUSIVE), or cannot be believed (ANOMALOUS)."""

    exit_code = 6
