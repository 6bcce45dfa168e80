"""Mixture-of-experts blocks of transformers in one form: lists of experts of three linear modules.

Models keep their experts as a list of modules under several names, or stack the weights of all into
two parameters in several orders. Here every expert is an :class:`Expert`, so that hooks see what
each one reads and weights can be replaced one by one. Routing stays transformers' own. What is
known stands in two tables: :data:`LISTED` by attribute names, :data:`STACKED` by the shapes of the
parameters; everything else is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch

from zenconvert.errors import Unsupported

Activation = Callable[[torch.Tensor], torch.Tensor]
Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(gate's output, up's output) → what ``down`` reads."""

LISTED: Final = (
    ("w1", "w3", "w2", "act_fn"),
    ("gate_proj", "up_proj", "down_proj", "act_fn"),
    ("gate_proj", "up_proj", "down_proj", "activation_fn"),
)
"""Attributes of the modules of a list: gate, up, down, activation."""


@dataclass(frozen=True, slots=True)
class Stack:
    """How the weights of all experts stand in two parameters."""

    gate_up: str
    """Axes of ``gate_up_proj``: e experts, h hidden, d twice the experts' width."""
    down: str
    """Axes of ``down_proj``: i is the experts' width."""
    bias: bool
    """``gate_up_proj_bias`` and ``down_proj_bias`` stand beside them."""


STACKED: Final = (
    Stack("edh", "ehi", bias=False),
    Stack("ehd", "eih", bias=False),
    Stack("edh", "ehi", bias=True),
    Stack("ehd", "eih", bias=True),
)


class Expert(torch.nn.Module):
    """A gated feed-forward network, x [tokens, hidden] → [tokens, hidden]."""

    def __init__(
        self, gate: torch.nn.Linear, up: torch.nn.Linear, down: torch.nn.Linear, combine: Combine
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.combine = gate, up, down, combine

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        return cast(torch.Tensor, self.down(self.inner(states, self.gate, self.up)))

    def inner(self, states: torch.Tensor, gate: Activation, up: Activation) -> torch.Tensor:
        """What ``down`` reads, [tokens, ffn]."""
        return self.combine(gate(states), up(states))

    def inner_of_all(self, states: torch.Tensor) -> torch.Tensor:
        """What ``down`` would read of any tokens; no hook sees it."""
        return self.inner(states, self.gate.forward, self.up.forward)


class ChosenExperts(torch.nn.ModuleList):
    """Takes the place of stacked experts that are told which tokens go where."""

    def forward(
        self,
        states: torch.Tensor,
        router_indices: torch.Tensor,
        routing_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Sum of the chosen experts' outputs, of the shape of ``states``.

        ``states`` [..., hidden]; ``router_indices`` int64[tokens, used]; ``routing_weights``
        float[tokens, used], or float[tokens, experts] as gpt-oss has it in transformers 4.
        """
        flat = states.reshape(-1, states.shape[-1])
        shares = routing_weights
        if _before_5() or shares.shape != router_indices.shape:
            shares = shares.gather(1, router_indices)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self):
            tokens, places = torch.where(router_indices == number)
            if len(tokens):
                output = expert(flat[tokens]) * shares[tokens, places, None]
                # no token chooses an expert twice, so nothing is added in a random order
                total.index_add_(0, tokens, output.to(total.dtype))
        return total.reshape(states.shape)


class SharedOutExperts(torch.nn.ModuleList):
    """Takes the place of stacked experts that get every token once for each of them, multiplied by
    its share: zeros where a token goes elsewhere."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[experts · tokens, hidden] → the same."""
        total = torch.zeros_like(states)
        by_expert = states.reshape(len(self), -1, states.shape[-1])
        for number, expert in enumerate(self):
            given, output = by_expert[number], total.view_as(by_expert)[number]
            tokens = given.any(-1).nonzero().squeeze(1)
            if len(tokens):
                output[tokens] = expert(given[tokens])
        return total


def find_moe(layer: torch.nn.Module) -> Any | None:
    """The module of a layer that routes tokens to its ``experts``; None in a dense layer."""
    return next((m for m in layer.modules() if getattr(m, "experts", None) is not None), None)


def unify_experts(layer: torch.nn.Module, where: str) -> None:
    """Replace the experts of a layer on the meta device.

    Raises Unsupported when transformers holds experts in a way that is not known here.
    """
    moe = find_moe(layer)
    if moe is None:
        return
    old = moe.experts
    found = _from_list(old) if isinstance(old, torch.nn.ModuleList) else _from_stack(old)
    if found is None:
        import transformers

        first = old[0] if isinstance(old, torch.nn.ModuleList) else old
        shapes = {name: tuple(value.shape) for name, value in first.named_parameters()}
        raise Unsupported(
            f"{where}: transformers {transformers.__version__} holds the experts of this model in "
            f"a way that is not known here ({type(first).__name__}, {shapes}); known are lists of "
            "gate, up and down and stacks of gate_up_proj and down_proj"
        )
    moe.experts = found


def _from_list(old: torch.nn.ModuleList) -> torch.nn.ModuleList | None:
    for names in LISTED:
        if all(hasattr(old[0], name) for name in names):
            parts = ([getattr(expert, name) for name in names] for expert in old)
            return torch.nn.ModuleList(
                Expert(gate, up, down, _gated(act)) for gate, up, down, act in parts
            )
    return None


def _from_stack(old: Any) -> torch.nn.ModuleList | None:
    shapes = {name: tuple(value.shape) for name, value in old.named_parameters()}
    combine = _combination(old)
    for stack in STACKED:
        sizes = _sizes(stack, shapes)
        if sizes is None or combine is None:
            continue
        told = len(inspect.signature(type(old).forward).parameters) > 2  # self and the states
        kind = ChosenExperts if told else SharedOutExperts
        with torch.device("meta"):
            return kind(
                Expert(
                    torch.nn.Linear(sizes["h"], sizes["i"], bias=stack.bias),
                    torch.nn.Linear(sizes["h"], sizes["i"], bias=stack.bias),
                    torch.nn.Linear(sizes["i"], sizes["h"], bias=stack.bias),
                    combine,
                )
                for _ in range(sizes["e"])
            )
    return None


def _sizes(stack: Stack, shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Axis → size; None where the parameters are others."""
    axes = {"gate_up_proj": stack.gate_up, "down_proj": stack.down}
    if stack.bias:
        axes |= {"gate_up_proj_bias": "ed", "down_proj_bias": "eh"}
    if shapes.keys() != axes.keys():
        return None
    sizes: dict[str, int] = {}
    for name, letters in axes.items():
        if len(shapes[name]) != len(letters):
            return None
        for letter, size in zip(letters, shapes[name], strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    return sizes if sizes["d"] == 2 * sizes["i"] else None


def _combination(old: Any) -> Combine | None:
    """How stacked experts join gate and up; None where that is not known."""
    own = getattr(type(old), "_apply_gate", None)
    if own is not None and own.__name__ != "_default_apply_gate":
        apart = getattr(old, "is_concatenated", True)
        return lambda gate, up: old._apply_gate(
            torch.cat((gate, up), -1) if apart else torch.stack((gate, up), -1).flatten(-2)
        )
    if hasattr(old, "act_fn"):
        return _gated(old.act_fn)
    if hasattr(old, "alpha") and hasattr(old, "limit"):
        return _clamped(float(old.alpha), float(old.limit))
    return None


def _gated(activation: Activation) -> Combine:
    return lambda gate, up: activation(gate) * up


def _clamped(alpha: float, limit: float) -> Combine:
    """gpt-oss: ``(up + 1) · gate · sigmoid(alpha · gate)``, both within the limit."""

    def combine(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))

    return combine


def _before_5() -> bool:
    import transformers

    return int(transformers.__version__.partition(".")[0]) < 5
