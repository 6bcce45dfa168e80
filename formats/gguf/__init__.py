"""GGUF v3, the container of llama.cpp."""
