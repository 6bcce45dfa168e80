"""llama.cpp itself, through llama-cpp-python: what users of a GGUF file will get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.processes import away
from zenconvert.errors import InvalidInput
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import check

if TYPE_CHECKING:
    import torch

_BATCH: Final = 512  # tokens decoded at a time, whose logits are held


class LlamaCppEngine:
    """Decodes windows from left to right, and holds the logits of one batch of positions."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cpu",
        room: int = 0,
    ) -> None:
        """``room`` is the length of the longest sequence that will be generated."""
        check("llamacpp", checkpoint)
        self.windows = windows
        longest = max(room, *(len(w.ids) for w in windows), 1)
        self.batch_size = min(_BATCH, longest)
        path = checkpoint.files[0].absolute()
        with away():  # it looks for backends where the process stands, and executes them
            import llama_cpp

            self.api: Any = llama_cpp
            self.gpu = device != "cpu" and bool(llama_cpp.llama_supports_gpu_offload())
            self.model = self._model(path, longest, threads)
        self.vocab = self.model.n_vocab()
        self.batch = self.api.llama_batch_init(self.batch_size, 0, 1)
        self.current, self.first = -1, 0
        self.held: NDArray[np.float32] = np.empty((0, self.vocab), dtype=np.float32)

    def _model(self, path: Path, longest: int, threads: int) -> Any:
        try:
            return self.api.Llama(
                model_path=str(path),
                n_ctx=longest,
                n_batch=self.batch_size,
                n_ubatch=self.batch_size,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1 if self.gpu else 0,
                # a cache in float16 would add its own drift to that of the file
                type_k=self.api.GGML_TYPE_F32,
                type_v=self.api.GGML_TYPE_F32,
                # what the file says of YaRN; the binding's own defaults would go before it
                yarn_attn_factor=-1.0,
                yarn_beta_fast=-1.0,
                yarn_beta_slow=-1.0,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(f"{path}: llama.cpp cannot load it: {error}") from error

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window, on the CPU."""
        import torch

        if window != self.current or begin < self.first:
            self._restart()
            self.current = window
        ids = self.windows[window].ids
        parts = []
        while begin < end:
            while (last := self.first + len(self.held)) <= begin:
                self.held = self._decode(ids[last : last + self.batch_size], last, every=True)
                self.first = last
            part = self.held[begin - self.first : end - self.first]
            parts.append(part)
            begin += len(part)
        return torch.from_numpy(np.concatenate(parts))

    def encode(self, text: str) -> list[int]:
        """Token ids by llama.cpp's own tokenizer, special tokens recognised."""
        return list(self.model.tokenize(text.encode(), add_bos=False, special=True))

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow, each the most probable one."""
        self._restart()
        known, fresh = 0, list(ids)
        found: list[int] = []
        while len(found) < count:
            for begin in range(0, len(fresh), self.batch_size):
                part = fresh[begin : begin + self.batch_size]
                rows = self._decode(part, known + begin, every=False)
            known += len(fresh)
            fresh = [int(rows[-1].argmax())]
            found += fresh
        self._restart()
        return found

    def details(self) -> dict[str, str]:
        """What ran, for the report."""
        return {
            "version": f"llama-cpp-python {self.api.__version__}",
            "device": "gpu" if self.gpu else "cpu",
            "key_value_cache": "f32",
        }

    def close(self) -> None:
        """Free the model."""
        self.api.llama_batch_free(self.batch)
        self.model.close()

    def _restart(self) -> None:
        """Forget everything read."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.model.ctx), True)
        self.current, self.first, self.held = -1, 0, self.held[:0]

    def _decode(self, ids: Sequence[int], position: int, *, every: bool) -> NDArray[np.float32]:
        """Read on; logits float32[n, vocab] after every token, or after the last only."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = every or index == len(ids) - 1
        if (status := self.api.llama_decode(self.model.ctx, batch)) != 0:
            raise InvalidInput(f"{self.model.model_path}: llama.cpp fails to decode it ({status})")
        rows = len(ids) if every else 1
        pointer = self.api.llama_get_logits(self.model.ctx)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocab)).copy()
