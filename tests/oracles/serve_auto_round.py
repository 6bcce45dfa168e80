"""AutoRound on the CPU in its own environment: runs GPTQ folders with kernels of its own."""

from __future__ import annotations

import json
from pathlib import Path

import auto_round  # noqa: F401  transformers finds it by its being there
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoRoundConfig

from tests.oracles.serve import serve


def logits(folder: str, ids: list[int], out: str) -> str:
    """float32[tokens, vocab], computed in float16; gives the class of its linear modules."""
    config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    ours = AutoRoundConfig(
        bits=config["bits"], group_size=config["group_size"], sym=config["sym"], backend="auto",
        packing_format="auto_round:auto_gptq",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=ours, dtype=torch.float16, device_map="cpu"
    )
    with torch.inference_mode():
        np.save(out, model(torch.tensor([ids])).logits[0].float().numpy())
    return type(model.model.layers[0].mlp.gate_proj).__module__


if __name__ == "__main__":
    serve({"logits": logits})
