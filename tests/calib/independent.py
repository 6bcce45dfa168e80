"""Activations of a whole transformers model, summed with numpy: what our statistics must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from zenconvert.calib.windows import Window

Rows = NDArray[np.float64]
Seen = dict[tuple[str, str], Rows]
"""(neutral module name, language) → everything that the module read, [tokens, columns]."""

DENSE = {
    "attn.q": "self_attn.q_proj",
    "attn.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.down": "mlp.down_proj",
}


def activations(folder: Path, windows: Sequence[Window]) -> Seen:
    """What every linear module reads, by plain hooks, one window at a time and in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    language = ""
    seen: dict[tuple[str, str], list[Rows]] = {}

    def keep(module: str, values: torch.Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1]).numpy().astype(np.float64)
        seen.setdefault((module, language), []).append(rows)

    def watch(module: str) -> Callable[..., None]:
        return lambda _, args: keep(module, args[0])

    def watch_experts(layer: int) -> Callable[..., None]:
        def hook(experts: Any, args: tuple[torch.Tensor, ...]) -> None:
            states, chosen, _ = args
            ffn = experts.down_proj.shape[-1]
            for number in range(len(experts.down_proj)):
                rows = states[(chosen == number).any(-1)]
                both = rows @ experts.gate_up_proj[number].T
                inner = torch.nn.functional.silu(both[:, :ffn]) * both[:, ffn:]
                keep(f"layers.{layer}.moe.{number}.gate", rows)
                keep(f"layers.{layer}.moe.{number}.down", inner)

        return hook

    model.lm_head.register_forward_pre_hook(watch("head"))
    for number, layer in enumerate(model.model.layers):
        for ours, theirs in DENSE.items():
            if theirs in dict(layer.named_modules()):
                module = layer.get_submodule(theirs)
                module.register_forward_pre_hook(watch(f"layers.{number}.{ours}"))
        moe = getattr(layer, "mlp", None) or layer.block_sparse_moe
        if not hasattr(moe, "experts"):
            continue
        moe.gate.register_forward_pre_hook(watch(f"layers.{number}.moe.router"))
        if not isinstance(moe.experts, torch.nn.ModuleList):  # transformers 5
            moe.experts.register_forward_pre_hook(watch_experts(number))
            continue
        for index, expert in enumerate(moe.experts):
            expert.w1.register_forward_pre_hook(watch(f"layers.{number}.moe.{index}.gate"))
            expert.w2.register_forward_pre_hook(watch(f"layers.{number}.moe.{index}.down"))
    with torch.inference_mode():
        for window in windows:
            language = window.language
            model(torch.tensor([window.ids]))
    return {key: np.concatenate(parts) for key, parts in seen.items()}
