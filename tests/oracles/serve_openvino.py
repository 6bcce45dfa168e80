"""OpenVINO in its own environment: runs ONNX graphs with weights, sums and cache in float32."""

from __future__ import annotations

import numpy as np
import openvino

from tests.oracles.serve import serve

_EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def logits(graph: str, ids: list[int], out: str) -> None:
    """float32[tokens, vocab] of a prefill."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph), "CPU", _EXACT)
    row = np.array([ids], dtype=np.int64)
    feeds = {"input_ids": row, "attention_mask": np.ones_like(row)}
    for value in compiled.inputs:
        if value.any_name not in feeds:
            _, heads, _, size = value.partial_shape
            feeds[value.any_name] = np.zeros(
                (1, heads.get_length(), 0, size.get_length()), value.element_type.to_dtype()
            )
    np.save(out, compiled(feeds)[compiled.output("logits")][0])


def refused(graph: str) -> str:
    """What OpenVINO says of a graph that it cannot run; empty for one that it can."""
    core = openvino.Core()
    try:
        core.compile_model(core.read_model(graph), "CPU")
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    serve({"logits": logits, "refused": refused})
