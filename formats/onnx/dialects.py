"""What exporters call the modules of a model, and what transformers calls them.

=====================  =======================================================================
zenconvert, mobius     the names of transformers (mobius: experts of Mixtral below ``mlp``)
onnxruntime-genai      ``model.layers.0.attn.qkv_proj.MatMul.weight``, ``…final_norm_layernorm…``
optimum (TorchScript)  numbered weights; nodes are ``/model/layers.0/self_attn/q_proj/MatMul``
torch.onnx (dynamo)    numbered weights; nodes carry the path of their module as metadata
=====================  =======================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from zenconvert.architecture import Architecture
from zenconvert.hyperparameters import Hyperparameters

_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")
_FUSED: Final = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""One product that exporters put in the place of several."""
_EXPERTS: Final = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_OUTSIDE: Final = {
    "embed_tokens": "model.embed_tokens",
    "final_norm_layernorm": "model.norm",
    "norm": "model.norm",
    "lm_head": "lm_head",
}


class Names:
    """Finds the modules that a name in a graph speaks of."""

    def __init__(self, architecture: Architecture, hp: Hyperparameters) -> None:
        self.known = {n.hf.rpartition(".")[0] for n in architecture.tensor_names(hp)}

    def modules(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Modules of transformers that the first telling text names; several where it is fused."""
        for text in texts:
            if found := self._modules(text.replace("/", ".").strip(".")):
                return found
        return ()

    def _modules(self, text: str) -> tuple[str, ...]:
        match = _LAYER.search(text)
        if match is None or match[2].startswith("final_norm"):
            parts = text.split(".")
            return next(((hf,) for key, hf in _OUTSIDE.items() if key in parts), ())
        rest = _canonical(match[2])
        for end in range(len(rest), 0, -1):
            part = ".".join(rest[:end])
            for module in _FUSED.get(part) or (part,):
                if f"model.layers.{match[1]}.{module}" not in self.known:
                    break
            else:
                return tuple(f"model.layers.{match[1]}.{m}" for m in (_FUSED.get(part) or (part,)))
        return ()


def _canonical(path: str) -> list[str]:
    """The parts of a module's path inside its layer, as transformers has them."""
    parts = path.split(".")
    if parts[0] == "attn":
        parts[0] = "self_attn"
    if parts[0] == "moe":
        parts[0] = "mlp"
    if parts[:2] == ["mlp", "router"]:
        parts[1] = "gate"
    if parts[:2] in (["mlp", "experts"], ["mlp", "gate"]):
        parts[0] = "block_sparse_moe"
    if parts[:2] == ["block_sparse_moe", "experts"] and len(parts) > 3:
        parts[3] = _EXPERTS.get(parts[3], parts[3])
    return parts
