"""transformers 4.57, in its own environment: runs HF folders."""

from __future__ import annotations

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests.oracles.serve import serve


def types() -> list[str]:
    """Model types that it has."""
    return list(CONFIG_MAPPING)


def logits(folder: str, ids: list[int], out: str) -> list[str]:
    """float32[tokens, vocab]. Returns what it did not find or had no place for."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    with torch.inference_mode():
        np.save(out, model.eval()(torch.tensor([ids])).logits[0].numpy())
    return [str(name) for names in info.values() for name in names]


def rotations(folder: str) -> dict[str, object]:
    """What it takes of a config on rotations."""
    found = AutoConfig.from_pretrained(folder).to_dict()
    return {key: found.get(key) for key in ("rope_theta", "rope_local_base_freq", "rope_scaling")}


if __name__ == "__main__":
    serve({"types": types, "logits": logits, "rotations": rotations})
