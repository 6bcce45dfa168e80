"""onnxruntime itself: what users of an ONNX folder will get, cache and all.

A window is read as a server would: a prefill in chunks, then the last tokens one by one, every step
with the cache of the step before. The report tells errors apart: those of the weights are what the
``torch`` engine finds, those of the graph are what it leaves at accuracy level 0, those of the
kernels are what the shipped level adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.formats.hf import fast
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import check
from zenconvert.verification.engines.onnxruntime_errors import graph_and_kernels
from zenconvert.verification.engines.onnxruntime_probe import probe
from zenconvert.verification.engines.onnxruntime_session import SINGLE, OnnxSession

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

CHUNK: Final = 256
"""Tokens of a prefill step, whose logits are held."""
APART: Final = 64
"""Tokens of the window on which errors are told apart."""


class OnnxruntimeEngine:
    """Reads windows from left to right, and holds the logits of one step."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cpu",
        room: int = 0,
    ) -> None:
        """``room`` is unused: the cache grows.

        Raises UsageError, MissingDependency, InvalidInput, and Unsupported where the installed
        onnxruntime computes an operator of the graph wrongly.
        """
        del room
        check("onnxruntime", checkpoint)
        import onnxruntime

        if problems := probe(checkpoint.files[0]):
            raise Unsupported(
                f"{checkpoint.path}: onnxruntime {onnxruntime.__version__} computes it wrongly: "
                + "; ".join(problems)
            )
        self.version = onnxruntime.__version__
        self.checkpoint, self.windows = checkpoint, windows
        self.threads, self.device = threads, device
        self.session = OnnxSession(checkpoint, threads=threads, device=device)
        self.border = checkpoint.hyperparameters.length_border
        self.current, self.first = -1, 0
        self.held: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window, on the CPU."""
        import torch

        if window != self.current or begin < self.first:
            self._restart(window)
        ids, parts = self.windows[window].ids, []
        while begin < end:
            while (last := self.first + len(self.held)) <= begin:
                count = min(CHUNK, max(1, len(ids) - SINGLE - last))
                if not last and 0 < self.border < len(ids):  # all of a long text is rotated alike
                    count = max(count, self.border + 1)
                self.held, self.first = self.session.step(ids[last : last + count]), last
            part = self.held[begin - self.first : end - self.first]
            parts.append(part)
            begin += len(part)
        return torch.from_numpy(np.concatenate(parts))

    def _restart(self, window: int) -> None:
        self.session.restart()
        self.current, self.first, self.held = window, 0, self.held[:0]

    def encode(self, text: str) -> list[int]:
        """Token ids by the folder's ``tokenizer.json``, special tokens recognised."""
        return fast.encode(self.tokenizer, text)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What the tokenizers library makes of the folder's ``tokenizer.json``.

        Raises CorruptFile.
        """
        path = _tokenizer(self.checkpoint)
        return fast.load(path.read_bytes(), str(path))

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow, each the most probable one."""
        self._restart(-1)
        found: list[int] = []
        fresh = list(ids)
        while len(found) < count:
            fresh = [int(self.session.step(fresh)[-1].argmax())]
            found += fresh
        self._restart(-1)
        return found

    def details(self) -> dict[str, str]:
        """What ran, and how much of the error is that of the graph and of the kernels."""

        ids = self.windows[0].ids[:APART] if self.windows else ()
        facts = {"version": f"onnxruntime {self.version}", "device": self.device}
        if len(ids) < 2:
            return facts
        apart = graph_and_kernels(self.checkpoint, ids, threads=self.threads)
        return facts | {
            "graph_error": f"{apart.graph}: onnxruntime at level 0 on its own decoded weights",
            "kernel_error": f"{apart.kernels}: the shipped accuracy level against level 0",
        }

    def close(self) -> None:
        """Free the model."""
        del self.session


def _tokenizer(checkpoint: Checkpoint) -> Path:
    path = (checkpoint.side_files or {}).get("tokenizer.json")
    if path is None:
        raise InvalidInput(f"{checkpoint.path}: there is no tokenizer.json beside the graph")
    return path
