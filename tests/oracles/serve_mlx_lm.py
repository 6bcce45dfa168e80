"""mlx-lm on the CPU in its own environment: runs HF and AWQ folders."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx_lm import load

from tests.oracles.serve import serve


def logits(folder: str, ids: list[int], out: str) -> None:
    """float32[tokens, vocab]; products are in the type of the folder."""
    model = load(folder)[0]
    np.save(out, np.array(model(mx.array([ids])).astype(mx.float32))[0])


def refused(folder: str) -> str:
    """What mlx-lm says of a folder that it does not load; empty for one that it does."""
    try:
        load(folder)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    serve({"logits": logits, "refused": refused})
