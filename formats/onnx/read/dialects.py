"""What exporters call the modules of a model, and what transformers calls them.

=====================  =======================================================================
zenconvert, mobius     the names of transformers (mobius: those of transformers 5 for experts)
onnxruntime-genai      ``model.layers.0.attn.qkv_proj.MatMul.weight``, ``…final_norm_layernorm…``
optimum (TorchScript)  numbered weights; nodes are ``/model/layers.0/self_attn/q_proj/MatMul``
torch.onnx (dynamo)    numbered weights; nodes carry the path of their module as metadata
=====================  =======================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.hyperparameters import Hyperparameters

_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")
_FUSED: Final = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""One product that exporters put in the place of several."""
_OUTSIDE: Final = {
    "embed_tokens": "embed",
    "final_norm_layernorm": "norm",
    "norm": "norm",
    "lm_head": "head",
}
"""What exporters call the modules outside layers → their neutral names."""


class Names:
    """Finds the modules that a name in a graph speaks of."""

    def __init__(self, architecture: Architecture, hp: Hyperparameters) -> None:
        outside = [m for m in architecture.modules if "{layer}" not in m.name]
        self.outside = {m.name: m.hf for m in outside}
        self.own = {m.hf.rpartition(".")[2]: m.name for m in outside} | _OUTSIDE
        """What modules outside layers are called → their neutral names."""
        self.inside: dict[tuple[str, str], str] = {}
        """Layer and path in it, by every name that the family's table has → module."""
        names = list(architecture.tensor_names(hp))
        found = [(n.hf_module, n.hf_module) for n in names]
        found += [((n.hf_also or "").rpartition(".")[0], n.hf_module) for n in names]
        found += [(_in_stacks(n), n.hf_module) for n in names if n.expert is not None]
        for text, module in found:
            if (match := _LAYER.search(text)) is not None:
                self.inside.setdefault((match[1], match[2]), module)

    def table(self, texts: Iterable[str]) -> str:
        """The module whose rows are looked up by token: the embedding, unless a text names
        another one."""
        own = self.outside.get("inputs.embed")
        return own if own is not None and own in self.modules(texts) else self.outside["embed"]

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
            return next(((self.outside[n],) for key, n in self.own.items() if key in parts), ())
        own, rest = match[2].split("."), _canonical(match[2])
        ends = [parts[:end] for parts in (own, rest) for end in range(len(parts), 0, -1)]
        for part in map(".".join, ends):
            found = [self.inside.get((match[1], one)) for one in _FUSED.get(part) or (part,)]
            if known := tuple(module for module in found if module is not None):
                return known if len(known) == len(found) else ()
        return ()


def _in_stacks(name: TensorName) -> str:
    """What nodes of all experts of a layer call one of their modules, whatever the family does."""
    layer, part = name.name.split(".")[1], name.name.split(".")[-2]
    return f"layers.{layer}.mlp.experts.{name.expert}.{part}_proj"


def _canonical(path: str) -> list[str]:
    """The parts of a module's path inside its layer, as transformers has them."""
    parts = path.split(".")
    if parts[0] == "attn":
        parts[0] = "self_attn"
    if parts[0] == "moe":
        parts[0] = "mlp"
    if parts[:2] == ["mlp", "router"]:
        parts[1] = "gate"
    return parts
