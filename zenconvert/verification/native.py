"""A native engine in a process of its own: the parent's side.

A runtime that aborts or is killed takes only its own process down, and what it loads comes from the
written file alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from zenconvert import errors
from zenconvert.base.processes import module_command, signal_name, start
from zenconvert.base.progress import Count
from zenconvert.base.scratch import temporary_folder
from zenconvert.errors import ConversionFailed, EngineFailed, InvalidInput, NotEnoughResources
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.cache import cache_folder
from zenconvert.verification.engine_check import Proof, Text
from zenconvert.verification.engines import ENGINES
from zenconvert.verification.metrics import TokenScores, split
from zenconvert.verification.states import States
from zenconvert.verification.watching import Hung, lines_of
from zenconvert.verification.worker import JOB, RESULT, SCORES

_MODULE: Final = "zenconvert.verification.worker"
_LAST_LINES: Final = 5


@dataclass(frozen=True, slots=True)
class NativeResult:
    """What the child measured."""

    scores: list[TokenScores]
    """By window."""
    proof: Proof
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class NativeJob:
    """What a native engine needs to know."""

    engine: str
    candidate: Checkpoint
    reference: Checkpoint
    states: States
    windows: Sequence[Window]
    texts: Sequence[Text]
    prefix: Sequence[int]
    """Tokens that begin every sequence."""
    device: str
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form for the child."""
        named = self.candidate.named_config
        return {
            "engine": self.engine,
            "candidate": str(self.candidate.path.resolve()),
            "config": str(named.resolve()) if named is not None else None,
            "reference": str(self.reference.path.resolve()),
            "states": str(self.states.path.resolve()),
            "windows": [asdict(w) for w in self.windows],
            "texts": [asdict(t) for t in self.texts],
            "prefix": list(self.prefix),
            "device": self.device,
            "threads": self.threads,
        }


def run_native(job: NativeJob, progress: Count) -> NativeResult:
    """Run the job in a fresh process.

    Raises what the child raised, RuntimeDied when the runtime died on the file, EngineFailed when
    it hangs or was built for another processor, and NotEnoughResources when it was killed.
    """
    with temporary_folder() as folder:
        (folder / JOB).write_text(json.dumps(job.as_dict()), encoding="utf-8")
        try:
            status = _spawn(folder, progress)
        except Hung as hung:
            raise EngineFailed(f"{_where(job)} hangs: {hung}") from hung
        if status != 0:
            raise _death(job, status, (folder / "stderr").read_text(errors="replace"))
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if "error" in result:
            raise getattr(errors, result["error"])(result["message"])
        flat = TokenScores.load(folder / SCORES)
    scores = split(flat, [len(window.ids) - 1 for window in job.windows])
    return NativeResult(scores, Proof.from_dict(result["proof"]), result["details"])


def _spawn(folder: Path, progress: Count) -> int:
    """Run the child to its end; its exit status."""
    read, write = os.pipe()
    with (
        (folder / "stdout").open("wb") as out,
        (folder / "stderr").open("wb") as log,
        os.fdopen(read, "rb") as pipe,
    ):
        try:
            process = start(
                module_command(_MODULE, str(folder), str(write)),
                {"ZENCONVERT_CACHE": str(cache_folder().resolve())},
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, pass_fds=(write,),
            )  # fmt: skip
        finally:
            os.close(write)
        try:
            for line in lines_of(pipe, process.pid):
                done, total = line.split()
                progress(int(done), int(total))
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


class RuntimeDied(InvalidInput):
    """The runtime died on the file: of the file, or of what is wrong with the runtime."""

    def __init__(self, what: str) -> None:
        self.what = what
        """How it died, with its last words."""
        advice = "`zenconvert doctor` tells whether it works on this machine at all"
        super().__init__(f"{what}\n{advice}")


def _where(job: NativeJob) -> str:
    return f"{job.candidate.path}: the {job.engine} engine"


def _death(job: NativeJob, status: int, log: str) -> errors.ZenError:
    last = "\n".join(log.strip().splitlines()[-_LAST_LINES:])
    where = _where(job)
    if status == -signal.SIGKILL:
        return NotEnoughResources(f"{where} was killed, most likely for want of memory")
    if status == -signal.SIGILL:
        return EngineFailed(
            f"{where} died of SIGILL: it was built for another processor than this one. "
            f"{ENGINES[job.engine].mend}"
        )
    if status < 0:
        name = signal_name(-status)
        words = f"; its last words:\n{last}" if last else ""
        return RuntimeDied(f"{where} died of {name}{words}")
    return ConversionFailed(f"{where} failed; its last words:\n{last}")
