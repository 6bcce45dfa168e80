"""A few nodes with weights of their own, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


def tensor(name: str, dtype: int, shape: tuple[int, ...], data: NDArray[Any]) -> onnx.TensorProto:
    """An initializer of bytes that are there; ``dtype`` is that of TensorProto."""
    import onnx

    raw = np.ascontiguousarray(data).tobytes()
    return onnx.helper.make_tensor(name, dtype, shape, raw, raw=True)


def computed(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    feeds: Mapping[str, NDArray[np.float32]],
) -> NDArray[np.float32]:
    """The value ``y`` on the CPU, float32[n, m], of inputs float32[n, …]."""
    import onnx
    import onnxruntime

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = (*feeds, "y")
    *given, wanted = (helper.make_tensor_value_info(n, kind, [None, None]) for n in names)
    graph = helper.make_graph(list(nodes), "probe", given, [wanted], list(tensors))
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=13)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, dict(feeds))[0]
    return found
