"""Decoder graphs, built on onnx-ir: imported when one is built, as onnx-ir is slow to load."""
