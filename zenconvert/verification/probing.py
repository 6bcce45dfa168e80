"""Does an engine work on this machine? Each is asked to run the bundled model, in a process of its
own: an engine that dies or hangs is an answer as well.

``python -m zenconvert.verification.probing ENGINE`` is that process: it converts the model into a
format that the engine runs, measures it on one text, and prints one line of JSON. ``GPUS`` in the
place of the engine lists the GPUs that torch sees.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import zenconvert
from zenconvert.base.processes import child_environment, module_command
from zenconvert.base.scratch import temporary_folder
from zenconvert.errors import MissingDependency, ZenError
from zenconvert.verification.engines import ENGINES, TORCH, requirement
from zenconvert.verification.watching import Hung, kill, lines_of

_GPUS: Final = "GPUS"
_MODULE: Final = "zenconvert.verification.probing"
_SOURCE: Final = "builtin:zen-nano"
_TARGETS: Final = {"gguf": "gguf:q8_0", "onnx": "onnx:int8", "gptq": "gptq", "awq": "awq"}
"""A quantized type of every format; folders of other formats are the bundled model itself."""
_TEXT: Final = (
    "The river rises in the mountains and flows through three countries before it reaches the sea. "
    "In spring it carries so much water that the old bridges are closed for weeks."
)
_CONTEXT: Final = 64
_FAR: Final = 0.1
"""Nats of mean KL divergence that no 8-bit file of the model is away from it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of asking an engine."""

    engine: str
    works: bool
    installed: bool
    text: str
    """The engine's version where it works, else what happened."""
    mend: str = ""
    """What to do about it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def probe(engine: str) -> Probe:
    """Ask one engine, in a process of its own."""
    missing = None if engine == TORCH else requirement(engine)
    if isinstance(missing, MissingDependency):
        return Probe(engine, False, False, "not installed", f"install {ENGINES[engine].install}")
    if missing is not None:
        return Probe(engine, False, True, str(missing))
    status, said, log = _run(engine)
    answer = _answer(said)
    if status == 0 and answer is not None and "version" in answer:
        return Probe(engine, True, True, answer["version"])
    what = answer["error"] if answer is not None and "error" in answer else _death(status, log)
    return Probe(engine, False, True, _one_line(what), _mend(engine))


def gpus() -> list[dict[str, Any]]:
    """Name and bytes of memory, ``memory`` and ``free``, of the GPUs that torch can use; none
    where torch does not even start."""
    answer = _answer(_run(_GPUS)[1])
    return list((answer or {}).get("gpus", []))


def _gpus() -> dict[str, Any]:
    """The child's side."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found.append({"name": name, "memory": total, "free": free})
    return {"gpus": found}


def _run(engine: str) -> tuple[int, str, str]:
    """Exit status, standard output and the end of standard error."""
    with temporary_folder() as folder:
        log = folder / "stderr"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                module_command(_MODULE, engine),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                env=child_environment(ZENCONVERT_CACHE=str(folder)),
            )  # fmt: skip
        assert process.stdout is not None
        with process.stdout as pipe:
            try:
                said = b"".join([*lines_of(pipe, process.pid)][-1:])
            except Hung as hung:
                return process.wait(), "", f"it hangs: {hung}"
            except BaseException:
                kill(process.pid)
                raise
            finally:
                status = process.wait()
        return status, said.decode(errors="replace"), log.read_text(errors="replace")


def _answer(said: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(said)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _one_line(text: str) -> str:
    """The first and the last of several lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " … ".join(lines if len(lines) < 3 else (lines[0], lines[-1]))


def _death(status: int, log: str) -> str:
    last = log.strip().splitlines()[-1:]
    if status < 0:
        return " ".join([f"it died of {signal.Signals(-status).name}", *last])
    return " ".join([f"it ended with exit code {status}:", *last])


def _mend(engine: str) -> str:
    if engine == TORCH:
        return "Install torch and transformers anew"
    return ENGINES[engine].mend


def _main(engine: str) -> dict[str, str]:
    """The child's side: the engine's version, or the error."""
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
    formats = {"hf"} if engine == TORCH else ENGINES[engine].formats
    if "hf" in formats:
        return _SOURCE
    (kind,) = sorted(formats)[:1]
    out = folder / ("model.gguf" if kind == "gguf" else "model")
    zenconvert.convert(_SOURCE, out, _TARGETS[kind])
    return out


if __name__ == "__main__":
    print(json.dumps(_gpus() if sys.argv[1] == _GPUS else _main(sys.argv[1])))
