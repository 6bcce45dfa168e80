"""Checkpoint → ONNX graph, its weights and the files beside them."""
