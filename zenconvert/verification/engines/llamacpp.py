"""llama.cpp itself, through llama-cpp-python: what users of a GGUF file will get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint
from zenconvert.errors import InvalidInput, MissingDependency, UsageError


class LlamaCppEngine:
    """Logits of whole windows, float32, computed when the first position of a window is asked."""

    def __init__(self, checkpoint: Checkpoint, windows: Sequence[Window], *, threads: int) -> None:
        if checkpoint.format != "gguf":
            raise UsageError(
                f"the llamacpp engine runs GGUF files; {checkpoint.path} is {checkpoint.format}"
            )
        try:
            import llama_cpp
        except ImportError as error:
            raise MissingDependency(
                "the llamacpp engine needs llama-cpp-python; install zenconvert[llamacpp]"
            ) from error
        self.windows = windows
        longest = max(len(w.ids) for w in windows)
        try:
            self.model = llama_cpp.Llama(
                model_path=str(checkpoint.files[0]),
                n_ctx=longest,
                n_batch=longest,
                n_ubatch=longest,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                # a cache in float16 would add its own drift to that of the file
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(f"{checkpoint.path}: llama.cpp cannot load it: {error}") from error
        self.current = -1
        self.scores: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)

    def logits(self, window: int, begin: int, end: int) -> NDArray[np.float32]:
        """Logits float32[end - begin, vocab] of positions of one window."""
        if window != self.current:
            ids = list(self.windows[window].ids)
            self.model.reset()
            self.model.eval(ids)
            self.scores = self.model.scores[: len(ids)]
            self.current = window
        return self.scores[begin:end]

    def close(self) -> None:
        """Free the model."""
        self.model.close()
