"""The output head in transformers' own modelling code: scales, softcaps and biases are its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zenconvert.errors import InvalidInput
from zenconvert.reference.skeleton import Given, Skeleton


class Head:
    """Final hidden states in, logits out, in float32."""

    def __init__(self, skeleton: Skeleton, weights: Mapping[str, torch.Tensor]) -> None:
        """``weights``: ``weight`` float32[vocab, hidden], ``bias`` float32[vocab] where the model
        has one. Raises InvalidInput for a bias that the config has no place for."""
        self.device = weights["weight"].device
        self._states = torch.empty(0)
        biased = getattr(skeleton.model, skeleton.head).bias is not None
        if "bias" in weights and not biased:
            raise InvalidInput(f"{skeleton.where}: the config has no place for lm_head.bias")
        with torch.device("meta"):
            vocab, hidden = weights["weight"].shape
            linear = torch.nn.Linear(hidden, vocab, bias=biased)
        self.linear = linear
        """The linear module itself, whose output scales and caps follow."""
        linear.weight = torch.nn.Parameter(weights["weight"], requires_grad=False)
        if biased:
            zeros = weights["weight"].new_zeros(len(weights["weight"]))
            linear.bias = torch.nn.Parameter(weights.get("bias", zeros), requires_grad=False)
        self._model = skeleton.with_head(linear, lambda: self._states)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States [n, hidden] of any float type → float32[n, vocab], on the head's device."""
        with torch.no_grad():
            return self._logits(states)

    def traced(self, states: torch.Tensor) -> torch.Tensor:
        """The same for states that require gradients; weights have none."""
        with torch.enable_grad():
            return self._logits(states)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        self._states = states.to(device=self.device, dtype=torch.float32)[None]
        output = self._model(inputs_embeds=self._states, use_cache=False, return_dict=True)
        self._states = torch.empty(0)
        logits: torch.Tensor = output.logits[0].float()
        return logits


def logits_of(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocab] of a whole causal model of transformers, whose final hidden states
    [n, hidden] are known, in the model's own types."""
    prefix = model.base_model_prefix
    base = getattr(model, prefix)
    setattr(model, prefix, Given(lambda: states[None]))
    try:
        with torch.inference_mode():
            output = model(inputs_embeds=states[None], use_cache=False, return_dict=True)
    finally:
        setattr(model, prefix, base)
    logits: torch.Tensor = output.logits[0]
    return logits
