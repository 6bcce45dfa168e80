"""Names of checkpoints → checkpoints."""
