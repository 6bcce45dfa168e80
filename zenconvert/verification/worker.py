"""A native engine in a process of its own: the child's side.

``python -m zenconvert.verification.worker FOLDER PIPE`` reads ``job.json``, loads the artifact from
its file, proves that it works, scores it against the reference's cached states and leaves
``result.json`` and ``scores.npz``. Progress goes down the pipe as ``done total`` lines; when the
parent is gone, writing fails and ends the child.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from zenconvert.base.machine import memory_errors
from zenconvert.errors import InvalidInput, ZenError
from zenconvert.opening.sources import open_checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engine_check import (
    Text,
    generation_lengths,
    prove_generation,
    prove_tokens,
)
from zenconvert.verification.engines import ENGINES
from zenconvert.verification.metrics import concatenate
from zenconvert.verification.scoring import HeadOnStates, score_windows
from zenconvert.verification.states import open_states, output_head
from zenconvert.verification.tokens import token_bytes

JOB: Final = "job.json"
RESULT: Final = "result.json"
SCORES: Final = "scores.npz"


def main(folder: Path, pipe: int) -> None:
    """Carry out a job; an error of ours becomes the result."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    with os.fdopen(pipe, "w", buffering=1) as progress:

        def count(done: int, total: int) -> None:
            progress.write(f"{done} {total}\n")

        try:
            with memory_errors(f"{job['candidate']}: the {job['engine']} engine"):
                result = _run(job, folder, count)
        except ZenError as error:
            result = {"error": type(error).__name__, "message": str(error)}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _run(job: dict[str, Any], folder: Path, count: Any) -> dict[str, Any]:
    windows = [Window(w["sample"], w["language"], tuple(w["ids"])) for w in job["windows"]]
    texts = [Text(**{**t, "ids": tuple(t["ids"])}) for t in job["texts"]]
    reference = open_checkpoint(Path(job["reference"]))
    states = open_states(Path(job["states"]), windows)
    if states is None:
        raise InvalidInput(f"{job['states']}: the reference's hidden states are gone; run it again")
    checkpoint = open_checkpoint(Path(job["candidate"]), job["config"])
    torch.set_num_threads(job["threads"])
    head = output_head(reference, device=job["device"])
    prefix, context = job["prefix"], reference.hyperparameters.context
    engine = ENGINES[job["engine"]].load()(
        checkpoint,
        windows,
        threads=job["threads"],
        device=job["device"],
        room=len(prefix) + sum(generation_lengths(context, len(prefix))),
    )
    try:
        vocab = reference.hyperparameters.vocab
        base = HeadOnStates(states.rows, head)
        scores = concatenate(score_windows(base, engine, windows, vocab, count))
        tokens = token_bytes(reference.tokenizer)
        generations = prove_generation(engine, texts, prefix, tokens, context)
        proof = replace(prove_tokens(engine, texts), generations=generations)
        details = engine.details()
    finally:
        engine.close()
    scores.save(folder / SCORES)
    return {"proof": proof.as_dict(), "details": details}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
