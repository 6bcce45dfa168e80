"""HF checkpoints: a folder with ``config.json``, safetensors files and tokenizer files."""
