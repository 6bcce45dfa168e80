"""A production, killed again and again: ``python -m tests.production.killed SOURCE PLACE SEED``.

What takes long to import is imported once; every run is a fork of this process, which has computed
nothing yet. Prints how many runs were killed in ``gather`` and in ``produce``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from transformers.models.llama import modeling_llama  # noqa: F401

from tests.production.variants import calibrating, variants
from zenconvert.batch import shared_walk as gathering
from zenconvert.batch.production import gather, produce
from zenconvert.calib.workspace import open_workspace
from zenconvert.write import one_pass as streaming

NAMES = ("q4", "iq3", "gptq", "f16")
_CALLS = ("pwrite", "replace", "fsync", "link", "rename", "unlink")


def work(source: Path, place: Path, kill_at: int) -> None:
    """Produce; die at the given call that touches the disk."""
    torch.set_num_threads(1)
    left = kill_at

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object, **given: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **given)

        setattr(os, name, call)

    for name in _CALLS:
        counted(name)
    setattr(streaming, "REMEMBER_SECONDS", 0)  # noqa: B010
    setattr(gathering, "open_workspace", partial(open_workspace, save_seconds=0))  # noqa: B010
    wanted, state = variants(place, *NAMES), place / "state"
    gathered = gather(source, wanted, calibrating(), state, imatrix=place / "imatrix.gguf")
    (place / "gathered").touch()
    produce(source, wanted, gathered, folder=state, threads=2)
    (place / "produced").touch()


def main() -> None:
    """Kill runs until one of them ends by itself."""
    source, place, draw = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    killed = [0, 0]
    while not (place / "produced").exists():
        producing = (place / "gathered").exists()
        kill_at = draw.randint(200, 1200) if producing else draw.randint(10, 50)
        child = os.fork()
        if child == 0:
            try:
                work(source, place, kill_at)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed[(place / "gathered").exists()] += os.WIFSIGNALED(status)
    print(*killed)


if __name__ == "__main__":
    main()
