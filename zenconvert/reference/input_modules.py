"""Modules of transformers that make what every layer is given beside hidden states.

They are taken out of the model's own forward pass, which gets what they made.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any, Final

import torch

from zenconvert.errors import Unsupported

_EMBEDDING: Final = "embed_tokens_per_layer"
_PROJECTION: Final = "per_layer_model_projection"
_NORM: Final = "per_layer_projection_norm"
_MAKE: Final = "project_per_layer_inputs"
"""The method that joins what the three make."""


class Inputs:
    """What a base model makes of tokens for its layers; nothing in most models."""

    def __init__(self, base: Any, where: str) -> None:
        """``where`` names the model in errors."""
        self.base, self.where = base, where
        self.modules: tuple[torch.nn.Module, ...] = tuple(
            module
            for name in (_EMBEDDING, _PROJECTION, _NORM)
            if (module := getattr(base, name, None)) is not None
        )
        if self.modules:
            setattr(base, _MAKE, _as_given)

    def embedding(self, rows: torch.Tensor) -> torch.nn.Module:
        """The embedding with a table of its own, [n, layers · width], on the CPU."""
        return with_rows(getattr(self.base, _EMBEDDING), rows, self.where)

    def maker(self, projection: torch.Tensor, norm: torch.Tensor) -> Callable[..., torch.Tensor]:
        """(embeddings [n, hidden], rows [n, layers, width]) → what layers are given, in the shape
        of the rows, with weights of the projection and of the norm."""
        base = copy(self.base)
        del base.__dict__[_MAKE]
        base._modules = dict(base._modules)
        for name, weight in ((_PROJECTION, projection), (_NORM, norm)):
            module = deepcopy(base._modules[name])
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            base._modules[name] = module

        def make(embedded: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                made: torch.Tensor = getattr(base, _MAKE)(embedded[None], rows[None])[0]
            return made

        return make

    def given(self, states: torch.Tensor, own: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What the forward pass of the base gets beside ``states`` [windows, tokens, hidden], where
        the one layer that runs gets ``own`` [windows, tokens, width]."""
        if not self.modules:
            return {}
        rows = states[..., :1] if own is None else own
        layers = self.base.config.num_hidden_layers
        return {"per_layer_inputs": rows.unsqueeze(2).expand(-1, -1, layers, -1)}


def _as_given(embedded: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return rows


def with_rows(embedding: torch.nn.Module, rows: torch.Tensor, where: str) -> torch.nn.Module:
    """A copy of an embedding with a table of its own, [n, columns], on the CPU."""
    module: Any = deepcopy(embedding)
    move_buffers(module, "cpu", where)
    module.padding_idx = None
    module.weight = torch.nn.Parameter(rows, requires_grad=False)
    return module  # type: ignore[no-any-return]


def move_buffers(module: torch.nn.Module, device: str, where: str) -> None:
    """Bring what transformers computes from a config to a device. Raises Unsupported for what is on
    the meta device, though no file has it."""
    for name, value in module.named_buffers(recurse=False):
        if value.is_meta and name not in module._non_persistent_buffers_set:
            continue  # comes with the weights
        if value.is_meta:
            raise Unsupported(
                f"{where}: transformers computes {name!r} of {type(module).__name__} in a way that "
                "is not known here"
            )
        module._buffers[name] = value.to(device)
