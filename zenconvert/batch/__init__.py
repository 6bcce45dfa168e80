"""Many variants of one model: one walk over its layers, one pass over its weights."""
