"""compressed-tensors folders: HF folders whose linear weights are integers or 8-bit floats."""
