"""ONNX: decoder graphs of onnxruntime and onnxruntime-genai, with weights in external data."""
