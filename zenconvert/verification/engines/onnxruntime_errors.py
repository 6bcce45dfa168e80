"""Where the drift of an ONNX file comes from: its weights, its graph, or the kernels that run it.

::

    weights   the decoded weights of the file in the reference graph, against the reference
    graph     onnxruntime at accuracy level 0, against its own decoded weights in that graph
    kernels   onnxruntime as shipped (integer activations), against level 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.onnxruntime_session import SINGLE, OnnxSession
from zenconvert.verification.engines.torch_engine import TorchEngine

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far some logits are from others."""

    largest: float
    """Of the differences between logits."""
    kl: float
    """Mean divergence of the distributions, nats."""

    def __str__(self) -> str:
        return f"largest |Δ logit| {self.largest:.2g}, KL {self.kl:.2g}"

    @classmethod
    def between(cls, base: Logits, other: Logits) -> Distance:
        """Logits ``[tokens, vocab]`` against the same positions of a base."""
        p, q = (_log_softmax(x.astype(np.float64)) for x in (base, other))
        divergence = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
        return cls(float(np.abs(base - other).max()), max(0.0, float(divergence)))


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@dataclass(frozen=True, slots=True)
class ErrorsApart:
    """The parts of the drift of a file on some tokens."""

    graph: Distance
    kernels: Distance
    weights: Distance | None = None
    """None where there was no reference."""


def errors_apart(
    reference: Checkpoint, candidate: Checkpoint, ids: Sequence[int], *, threads: int
) -> ErrorsApart:
    """All three errors of an ONNX file on one sequence of tokens."""
    apart = graph_and_kernels(candidate, ids, threads=threads)
    weights = Distance.between(reference_logits(reference, ids), reference_logits(candidate, ids))
    return ErrorsApart(apart.graph, apart.kernels, weights)


def graph_and_kernels(candidate: Checkpoint, ids: Sequence[int], *, threads: int) -> ErrorsApart:
    """The errors that need no reference."""
    own = reference_logits(candidate, ids)
    plain = _read(OnnxSession(candidate, threads=threads, level=0), ids)
    shipped = _read(OnnxSession(candidate, threads=threads), ids)
    return ErrorsApart(Distance.between(own, plain), Distance.between(plain, shipped))


def reference_logits(checkpoint: Checkpoint, ids: Sequence[int]) -> Logits:
    """Logits of decoded weights in the reference graph, float32."""
    window = Window("errors apart", "und", tuple(ids))
    engine = TorchEngine(checkpoint, [window], device="cpu", progress=lambda done, total: None)
    return np.asarray(engine.logits(0, 0, len(ids)))


def _read(session: OnnxSession, ids: Sequence[int]) -> Logits:
    """A prefill, and the last tokens one by one."""
    begin = max(1, len(ids) - SINGLE)
    parts = [session.step(ids[:begin])]
    parts += [session.step([i]) for i in ids[begin:]]
    return np.concatenate(parts)
