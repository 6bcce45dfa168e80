"""Activations of a whole transformers model, summed with numpy: what our statistics must equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from zenconvert.texts.windows import Window

Rows = NDArray[np.float64]
Seen = dict[tuple[str, str], Rows]
"""(neutral module name, language) → everything that the module read, [tokens, columns]."""

DENSE = {
    "self_attn.q_proj": "attn.q",
    "self_attn.o_proj": "attn.o",
    "mlp.gate_proj": "ffn.gate",
    "mlp.down_proj": "ffn.down",
}


def activations(folder: Path, windows: Sequence[Window]) -> Seen:
    """What every linear module reads, by plain hooks, one window at a time and in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    watcher = _Watcher()
    watcher.watch(model.lm_head, "head")
    for number, layer in enumerate(model.model.layers):
        for path, module in layer.named_modules():
            if path in DENSE:
                watcher.watch(module, f"layers.{number}.{DENSE[path]}")
            elif hasattr(module, "experts"):
                watcher.watch_moe(module, f"layers.{number}.moe")
    with torch.inference_mode():
        for window in windows:
            watcher.language = window.language
            model(torch.tensor([window.ids]))
    return {key: np.concatenate(parts) for key, parts in watcher.seen.items()}


class _Watcher:
    """Hooks that keep everything."""

    def __init__(self) -> None:
        self.language = ""
        self.seen: dict[tuple[str, str], list[Rows]] = {}

    def keep(self, name: str, values: torch.Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1]).numpy().astype(np.float64)
        self.seen.setdefault((name, self.language), []).append(rows)

    def watch(self, module: Any, name: str) -> None:
        module.register_forward_pre_hook(lambda _, args: self.keep(name, args[0]))

    def watch_moe(self, moe: Any, name: str) -> None:
        self.watch(moe.gate, f"{name}.router")
        if not isinstance(moe.experts, torch.nn.ModuleList):  # transformers 5
            moe.experts.register_forward_pre_hook(lambda *seen: self.keep_experts(name, *seen))
            return
        for number, expert in enumerate(moe.experts):
            self.watch(expert.w1, f"{name}.{number}.gate")
            self.watch(expert.w2, f"{name}.{number}.down")

    def keep_experts(self, name: str, experts: Any, args: tuple[torch.Tensor, ...]) -> None:
        states, chosen, _ = args
        ffn = experts.down_proj.shape[-1]
        for number in range(len(experts.down_proj)):
            rows = states[(chosen == number).any(-1)]
            both = rows @ experts.gate_up_proj[number].T
            inner = torch.nn.functional.silu(both[:, :ffn]) * both[:, ffn:]
            self.keep(f"{name}.{number}.gate", rows)
            self.keep(f"{name}.{number}.down", inner)
