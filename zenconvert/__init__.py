"""zenconvert: convert, quantize and verify language-model checkpoints.

Every name here is loaded on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, which need not be loaded
if TYPE_CHECKING:
    from typing import Any

    from zenconvert import errors
    from zenconvert.calibration import Calibration, calibrate
    from zenconvert.checkpoint import Checkpoint
    from zenconvert.conversion import Conversion, convert, plan
    from zenconvert.difference import Difference, diff
    from zenconvert.inspection import Inspection, inspect
    from zenconvert.planning import Plan, Step
    from zenconvert.publication.preview import Preview
    from zenconvert.publication.run import ReleaseResult, plan_release, release
    from zenconvert.sources import open_checkpoint
    from zenconvert.target import Options, Target
    from zenconvert.verification.comparison import Comparison, compare
    from zenconvert.verification.gate import Outcome, Verdict
    from zenconvert.verification.report import Report
    from zenconvert.verification.run import verify
    from zenconvert.verification.tasks import TaskDrift, compare_tasks

__version__ = "0.1.0"

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
    "inspect",
    "open_checkpoint",
    "plan",
    "plan_release",
    "release",
    "verify",
]

_HOMES = {
    "Calibration": "calibration",
    "Checkpoint": "checkpoint",
    "Comparison": "verification.comparison",
    "Conversion": "conversion",
    "Difference": "difference",
    "Inspection": "inspection",
    "Options": "target",
    "Outcome": "verification.gate",
    "Plan": "planning",
    "Preview": "publication.preview",
    "ReleaseResult": "publication.run",
    "Report": "verification.report",
    "Step": "planning",
    "Target": "target",
    "TaskDrift": "verification.tasks",
    "Verdict": "verification.gate",
    "calibrate": "calibration",
    "compare": "verification.comparison",
    "compare_tasks": "verification.tasks",
    "convert": "conversion",
    "diff": "difference",
    "inspect": "inspection",
    "open_checkpoint": "sources",
    "plan": "conversion",
    "plan_release": "publication.run",
    "release": "publication.run",
    "verify": "verification.run",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("zenconvert.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'zenconvert' has no attribute {name!r}")
    return getattr(import_module(f"zenconvert.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
