"""zenconvert: convert, quantize and verify language-model checkpoints.

Every name here is loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module

from zenconvert.version import __version__ as __version__

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from typing import Any

    from zenconvert import errors
    from zenconvert.conversion import Conversion, convert, plan
    from zenconvert.difference import Difference, diff
    from zenconvert.inspection import Inspection, inspect
    from zenconvert.model.checkpoint import Checkpoint
    from zenconvert.model.target import Options, Target
    from zenconvert.opening.sources import open_checkpoint
    from zenconvert.planning.plan import Plan, Step
    from zenconvert.publication.preview import Preview
    from zenconvert.publication.release_run import ReleaseResult, plan_release, release
    from zenconvert.solve.calibration import Calibration, calibrate
    from zenconvert.verification.comparison import Comparison, compare
    from zenconvert.verification.gate import Outcome, Verdict, gate
    from zenconvert.verification.measurement import verify
    from zenconvert.verification.report import Report
    from zenconvert.verification.tasks import TaskDrift, compare_tasks

__all__ = [
    "Calibration",
    "Checkpoint",
    "Comparison",
    "Conversion",
    "Difference",
    "Inspection",
    "Options",
    "Outcome",
    "Plan",
    "Preview",
    "ReleaseResult",
    "Report",
    "Step",
    "Target",
    "TaskDrift",
    "Verdict",
    "calibrate",
    "compare",
    "compare_tasks",
    "convert",
    "diff",
    "errors",
    "gate",
    "inspect",
    "open_checkpoint",
    "plan",
    "plan_release",
    "release",
    "verify",
]

_HOMES = {
    "Calibration": "solve.calibration",
    "Checkpoint": "model.checkpoint",
    "Comparison": "verification.comparison",
    "Conversion": "conversion",
    "Difference": "difference",
    "Inspection": "inspection",
    "Options": "model.target",
    "Outcome": "verification.gate",
    "Plan": "planning.plan",
    "Preview": "publication.preview",
    "ReleaseResult": "publication.release_run",
    "Report": "verification.report",
    "Step": "planning.plan",
    "Target": "model.target",
    "TaskDrift": "verification.tasks",
    "Verdict": "verification.gate",
    "calibrate": "solve.calibration",
    "compare": "verification.comparison",
    "compare_tasks": "verification.tasks",
    "convert": "conversion",
    "diff": "difference",
    "gate": "verification.gate",
    "inspect": "inspection",
    "open_checkpoint": "opening.sources",
    "plan": "conversion",
    "plan_release": "publication.release_run",
    "release": "publication.release_run",
    "verify": "verification.measurement",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("zenconvert.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'zenconvert' has no attribute {name!r}")
    return getattr(import_module(f"zenconvert.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
