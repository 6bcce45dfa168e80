"""Does an engine work on this machine? Each is asked to run the bundled model, in a process of its
own (``probe_worker``): an engine that dies or hangs is an answer as well.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from zenconvert.base.processes import module_command, signal_name, start
from zenconvert.base.scratch import temporary_folder
from zenconvert.errors import MissingDependency
from zenconvert.verification.engines import ENGINES, TORCH, requirement
from zenconvert.verification.watching import Hung, kill, lines_of

GPUS: Final = "GPUS"
"""Asks for the GPUs that torch sees, in the place of an engine."""
_MODULE: Final = "zenconvert.verification.probe_worker"


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
    answer = _answer(_run(GPUS)[1])
    return list((answer or {}).get("gpus", []))


def _run(engine: str) -> tuple[int, str, str]:
    """Exit status, standard output and the end of standard error."""
    with temporary_folder() as folder:
        log = folder / "stderr"
        with log.open("wb") as errors:
            process = start(
                module_command(_MODULE, engine), {"ZENCONVERT_CACHE": str(folder)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
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
        return " ".join([f"it died of {signal_name(-status)}", *last])
    return " ".join([f"it ended with exit code {status}:", *last])


def _mend(engine: str) -> str:
    if engine == TORCH:
        return "Install torch and transformers anew"
    return ENGINES[engine].mend
