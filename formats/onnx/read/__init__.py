"""ONNX graphs of any exporter → checkpoint."""
