"""Engines turn token ids into logits: the reference graph, or the runtime that users will have."""
