"""What zenconvert itself reads in a folder, to compare with a tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zenconvert import open_checkpoint
from zenconvert.model.encoding import Grouped
from zenconvert.planning.recoding import logical_rows
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

IDS = tuple(np.random.default_rng(3).integers(3, 500, 48).tolist())
"""Tokens that every model of the tests has."""


def logits(folder: Path, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    """Logits by the decoded weights in transformers' own graph, in float32."""
    return all_logits(folder, [ids])[0]


def all_logits(folder: Path, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Those of several sequences."""
    engine = TorchEngine(
        open_checkpoint(folder),
        [Window(str(n), "und", tuple(ids)) for n, ids in enumerate(rows)],
        device="cpu",
        progress=lambda done, total: None,
    )
    return [np.asarray(engine.logits(n, 0, len(ids)).numpy()) for n, ids in enumerate(rows)]


def divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(reference ‖ other) in nats of logits [positions, vocab]."""
    first, second = (
        torch.log_softmax(torch.from_numpy(v).double(), dim=-1) for v in (reference, other)
    )
    return np.asarray((first.exp() * (first - second)).sum(dim=-1).numpy())


def weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every quantized weight decoded, by the name of its module."""
    checkpoint = open_checkpoint(folder)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    return {
        n.hf.removesuffix(".weight"): logical_rows(t, 0, t.rows)
        for n in names
        if (t := checkpoint.tensors.get(n.name)) is not None and isinstance(t.encoding, Grouped)
    }


def modules(folder: Path) -> set[str]:
    """The modules that files have in codes; one that holds the rows of several is one."""
    checkpoint = open_checkpoint(folder)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    return {
        n.hf_file.removesuffix(".weight")
        for n in names
        if (t := checkpoint.tensors.get(n.name)) is not None and isinstance(t.encoding, Grouped)
    }


def runtime_name(module: str) -> str:
    """What transformers 5 calls a module of a Mixtral in memory."""
    for ours, theirs in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        if module.endswith(f".{ours}"):
            module = module.removesuffix(ours) + theirs
    return module.replace("block_sparse_moe", "mlp")


def assert_close(ours: NDArray[np.float32], theirs: NDArray[np.float32], share: float) -> None:
    """Equal to a share of the largest number."""
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    assert np.isfinite(largest)
    assert largest > 0
    assert np.abs(ours - theirs).max() <= share * largest
