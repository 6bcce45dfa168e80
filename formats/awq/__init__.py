"""AWQ checkpoints: an HF folder whose linear weights are packed 4-bit integers."""
