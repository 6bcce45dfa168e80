"""Runs of one calibration, each killed at some moment: ``python -m tests.calib.killed FOLDER N``.

What takes long to import is imported once; every run is a fork of this process, which has computed
nothing yet.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import torch
from transformers.models.mixtral import modeling_mixtral  # noqa: F401

from tests.calib.walking import reference, selection
from zenconvert.calib.statistics_file import StatisticsRun
from zenconvert.calib.walk import WalkSettings

_CALLS = ("pwrite", "replace", "fsync")


def calibrate(folder: Path, out: Path, kill_at: int | None) -> None:
    """Write the statistics; die at the given call that touches the disk."""
    torch.set_num_threads(1)
    left = kill_at if kill_at is not None else -1

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(os, name, call)

    for name in _CALLS:
        counted(name)
    run = StatisticsRun(
        reference(folder), selection(), WalkSettings(moments=True), final_states=True
    )
    run.run(out, save_seconds=0)


def main() -> None:
    """Kill runs until one of them ends by itself; print how many were killed."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(seed)
    killed = 0
    while not (folder / "killed.stats").exists():
        child = os.fork()
        if child == 0:
            try:
                calibrate(folder / "model", folder / "killed.stats", draw.randint(10, 150))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        draw.random()  # the child's draw was its own
    print(killed)


if __name__ == "__main__":
    main()
