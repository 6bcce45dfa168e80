"""An ONNX graph in onnxruntime, read token by token with the cache of one sequence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layer_heads import layer_heads
from zenconvert.verification.engines.onnxruntime_probe import failures

_PAST: Final = re.compile(r"past_key_values\.(\d+)\.")
SINGLE: Final = 4
"""Tokens at the end of a window that are decoded one by one."""
_QDQ_LEVEL: Final = "session.qdq_matmulnbits_accuracy_level"
_FOLDER: Final = "session.model_external_initializers_file_folder_path"


class OnnxSession:
    """A graph in memory, with weights from its folder, and the cache of one sequence."""

    def __init__(
        self, checkpoint: Checkpoint, *, threads: int, device: str = "cpu", level: int | None = None
    ) -> None:
        """``level`` replaces every accuracy level of the graph."""
        import onnx
        import onnxruntime

        graph = checkpoint.files[0]
        model = onnx.load(str(graph), load_external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry(_FOLDER, str(graph.resolve().parent))
        if level is not None:
            options.add_session_config_entry(_QDQ_LEVEL, str(level))
            for node in model.graph.node:
                for attribute in node.attribute:
                    if attribute.name == "accuracy_level":
                        attribute.i = level
        providers = onnxruntime.get_available_providers() if device != "cpu" else []
        wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in providers]
        try:
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=wanted or ["CPUExecutionProvider"]
            )
        except failures() as error:
            raise InvalidInput(f"{graph}: onnxruntime cannot load it: {error}") from error
        self.names = [value.name for value in self.session.get_outputs()]
        self.empty = dict(_empty_cache(self.session, checkpoint))
        self.wants_positions = "position_ids" in {i.name for i in self.session.get_inputs()}
        self.path, self.read, self.cache = graph, 0, self.empty

    def restart(self) -> None:
        """Forget everything read."""
        self.read, self.cache = 0, self.empty

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read on; logits float32[n, vocab] after every token."""
        total = self.read + len(ids)
        feeds: dict[str, Any] = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            **self.cache,
        }
        if self.wants_positions:
            feeds["position_ids"] = np.arange(self.read, total, dtype=np.int64)[None]
        try:
            found = dict(zip(self.names, self.session.run(None, feeds), strict=True))
        except failures() as error:
            raise InvalidInput(f"{self.path}: onnxruntime fails to run it: {error}") from error
        logits: NDArray[np.float32] = found.pop("logits")[0].astype(np.float32)
        self.cache = {n.replace("present", "past_key_values"): v for n, v in found.items()}
        self.read = total
        return logits


def _empty_cache(session: Any, checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[Any]]]:
    heads = layer_heads(checkpoint.hyperparameters)
    for value in session.get_inputs():
        if (match := _PAST.match(value.name)) is not None and int(match[1]) < len(heads):
            of = heads[int(match[1])]
            dtype = np.float16 if "float16" in value.type else np.float32
            yield value.name, np.zeros((1, of.kv_heads, 0, of.size), dtype)
