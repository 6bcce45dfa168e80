"""Folders with experts in MXFP4, made of random bits by no code of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SETTINGS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
}  # fmt: skip


def in_blocks(floats: Path, out: Path, *, seed: int = 3) -> Path:
    """A copy of a folder whose stacks ``[experts, in, out]`` are random blocks."""
    shutil.copytree(floats, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": SETTINGS}))
    draw, tensors = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for name, value in load_file(floats / "model.safetensors").items():
        if value.dim() < 3:
            tensors[name] = value
            continue
        experts, columns, rows = value.shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (*shape, 16), dtype=torch.uint8, generator=draw
        )
        tensors[f"{name}_scales"] = torch.randint(
            119, 124, shape, dtype=torch.uint8, generator=draw
        )
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out
