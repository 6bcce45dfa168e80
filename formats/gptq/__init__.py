"""GPTQ checkpoints: an HF folder whose linear weights are packed integers."""
