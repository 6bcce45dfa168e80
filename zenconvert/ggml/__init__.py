"""ggml's tensor types: their bytes, their numbers and their integer grids."""
