"""diffusers in its own environment: decodes GGUF files by its own functions of torch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

from tests.oracles.serve import save, serve


def weights(file: str, out: str) -> None:
    """Every tensor of a file as float32, by its name there."""
    save(out, {name: _decoded(tensor) for name, tensor in load_gguf_checkpoint(file).items()})


def _decoded(tensor: Any) -> torch.Tensor:
    """As ``dequantize_gguf_tensor`` does, with products in float32 instead of float16."""
    if not hasattr(tensor, "quant_type"):
        return torch.as_tensor(tensor)
    block, size = GGML_QUANT_SIZES[tensor.quant_type]
    blocks = tensor.as_tensor().view(torch.uint8).reshape(-1, size)
    values: torch.Tensor = dequantize_functions[tensor.quant_type](
        blocks, block, size, torch.float32
    )
    return values.reshape(tensor.quant_shape)


if __name__ == "__main__":
    serve({"weights": weights})
