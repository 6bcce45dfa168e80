"""``python -m zenconvert.verification.probe_worker ENGINE``: one engine, asked in this process.

It converts the bundled model into a format that the engine runs, measures it on one text, and
prints one line of JSON. ``GPUS`` in the place of the engine lists the GPUs that torch sees.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from zenconvert.base.scratch import temporary_folder
from zenconvert.errors import ZenError
from zenconvert.formats.registry import FORMATS
from zenconvert.verification.engines import ENGINES, TORCH
from zenconvert.verification.probing import GPUS

_SOURCE: Final = "builtin:zen-nano"
_TEXT: Final = (
    "The river rises in the mountains and flows through three countries before it reaches the sea. "
    "In spring it carries so much water that the old bridges are closed for weeks."
)
_CONTEXT: Final = 64
_FAR: Final = 0.1
"""Nats of mean KL divergence that no 8-bit file of the model is away from it."""


def _gpus() -> dict[str, Any]:
    """The child's side."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append({"name": name, "memory": total, "free": free})
    return {"gpus": found}


def _main(engine: str) -> dict[str, str]:
    """The child's side: the engine's version, or the error."""
    if engine != TORCH:
        import_module(ENGINES[engine].package)  # what does not load ends this process at once
    from zenconvert.verification.measurement import verify
    from zenconvert.verification.native import RuntimeDied

    try:
        with temporary_folder() as folder:
            text = folder / "text.txt"
            text.write_text(_TEXT, encoding="utf-8")
            artifact = _artifact(engine, folder)
            report = verify(_SOURCE, artifact, engine=engine, text=text, context=_CONTEXT)
    except RuntimeDied as died:
        return {"error": died.what}
    except ZenError as error:
        return {"error": str(error)}
    run = report.runs[0]
    if not run.overall.kl_mean < _FAR:
        return {"error": f"it computes something else: KL divergence {run.overall.kl_mean:.3g}"}
    if run.proof.problems:
        return {"error": "; ".join(run.proof.problems)}
    return {"version": ", ".join([run.details["version"], run.details.get("device", "")])}


def _artifact(engine: str, folder: Path) -> str | Path:
    """The bundled model in a format that the engine runs."""
    able = [form for form in FORMATS.values() if engine in form.engines]
    if engine == TORCH or any(form.near_type is None for form in able):
        return _SOURCE
    from zenconvert.conversion import convert

    form = able[0]
    out = folder / f"model{form.suffix or ''}"
    convert(_SOURCE, out, f"{form.name}:{form.near_type}")
    return out


if __name__ == "__main__":
    print(json.dumps(_gpus() if sys.argv[1] == GPUS else _main(sys.argv[1])))
