"""The reference model in transformers' own modules, one layer in memory at a time."""
