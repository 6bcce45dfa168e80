"""Mixture-of-experts blocks of transformers in one form: lists of experts of three linear modules.

transformers 4 keeps a list of experts (``w1``, ``w2``, ``w3``), transformers 5 stacks the weights
of all into two parameters. Here every expert is an :class:`Expert`, so that hooks see what each
one reads and weights can be replaced one by one. Routing stays transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import torch

from zenconvert.errors import Unsupported

Activation = Callable[[torch.Tensor], torch.Tensor]

_LISTED: Final = ("w1", "w3", "w2", "act_fn")  # gate, up, down


class Expert(torch.nn.Module):
    """A gated feed-forward network: ``down(activation(gate(x)) * up(x))``, x [tokens, hidden]."""

    def __init__(
        self,
        gate: torch.nn.Linear,
        up: torch.nn.Linear,
        down: torch.nn.Linear,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.activation = gate, up, down, activation

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        return cast(torch.Tensor, self.down(self.inner(states, self.gate, self.up)))

    def inner(self, states: torch.Tensor, gate: Activation, up: Activation) -> torch.Tensor:
        """What ``down`` reads, [tokens, ffn]."""
        return self.activation(gate(states)) * up(states)

    def inner_of_all(self, states: torch.Tensor) -> torch.Tensor:
        """What ``down`` would read of any tokens; no hook sees it."""
        return self.inner(states, self.gate.forward, self.up.forward)


class StackedExperts(torch.nn.ModuleList):
    """Takes the place of the stacked experts of transformers 5, with the same call."""

    def forward(
        self, states: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the chosen experts' outputs.

        ``states`` [tokens, hidden]; ``chosen`` int64 and ``shares`` float, [tokens, used].
        """
        total = torch.zeros_like(states)
        for number, expert in enumerate(self):
            tokens, places = torch.where(chosen == number)
            if len(tokens):
                output = expert(states[tokens]) * shares[tokens, places, None]
                # no token chooses an expert twice, so nothing is added in a random order
                total.index_add_(0, tokens, output.to(total.dtype))
        return total


def find_moe(model: torch.nn.Module) -> Any | None:
    """The module of a block that routes tokens to its ``experts``; None in a dense block."""
    return next((m for m in model.modules() if getattr(m, "experts", None) is not None), None)


def unify_experts(model: torch.nn.Module, where: str) -> None:
    """Replace the experts of a one-layer model on the meta device.

    Raises Unsupported when transformers holds experts in a way that is not known here.
    """
    moe = find_moe(model)
    if moe is None:
        return
    old = moe.experts
    if isinstance(old, torch.nn.ModuleList) and all(hasattr(old[0], name) for name in _LISTED):
        parts = ((getattr(expert, name) for name in _LISTED) for expert in old)
        moe.experts = torch.nn.ModuleList(Expert(*expert) for expert in parts)
        return
    shapes = {name: tuple(value.shape) for name, value in old.named_parameters()}
    stacked, down = shapes.get("gate_up_proj", ()), shapes.get("down_proj", ())
    if len(shapes) != 2 or len(stacked) != 3 or down != (stacked[0], stacked[2], stacked[1] // 2):
        import transformers

        raise Unsupported(
            f"{where}: transformers {transformers.__version__} holds the experts of this model in "
            f"a way that is not known here ({type(old).__name__}, {shapes}); known are those of "
            "transformers 4.49 to 4.57 and of 5"
        )
    moe.experts = StackedExperts(_new_experts(*down, old.act_fn))


def _new_experts(count: int, hidden: int, ffn: int, activation: Activation) -> Iterable[Expert]:
    with torch.device("meta"):
        for _ in range(count):
            gate, up = (torch.nn.Linear(hidden, ffn, bias=False) for _ in range(2))
            yield Expert(gate, up, torch.nn.Linear(ffn, hidden, bias=False), activation)
