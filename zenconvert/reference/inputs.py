"""The distinct inputs of a layer: which linear modules read the same numbers, and in which order.

Source: the ``balance`` rows of an architecture table, those without anything to scale among them.
What one row lists in ``into`` reads one input (q, k and v; gate and up), per expert where modules
are per expert, and the rows stand in the order in which a layer computes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.table_rows import Balance

HEAD: Final = "head"
"""The input of the output head: the final hidden states after the last norm."""

_LAYER: Final = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Input:
    """What one or several linear modules of a layer read."""

    name: str
    """Neutral name of the first module that reads it, e.g. ``layers.3.attn.q``."""
    modules: tuple[str, ...]
    """Neutral names of all that read it."""
    columns: int
    stage: int
    """Inputs of one stage depend on the weights of the modules of earlier stages."""
    expert: int | None = None
    """The only expert that reads it."""
    solved: bool = True
    """False where only a router reads it, which nobody quantizes."""

    @property
    def moment_bytes(self) -> int:
        """Size of its second moments, float32[columns, columns]; 0 where nobody asks for them."""
        return 4 * self.columns**2 if self.solved else 0


def by_layer(names: Iterable[TensorName]) -> dict[int, list[TensorName]]:
    """The tensors of every layer; those outside of layers are left out, and what nobody reads."""
    layers: dict[int, list[TensorName]] = {}
    for name in names:
        if not name.unread and (match := _LAYER.match(name.name)):
            layers.setdefault(int(match[1]), []).append(name)
    return layers


def layer_inputs(
    architecture: Architecture, tensors: Iterable[TensorName], *, all_experts: bool = False
) -> tuple[Input, ...]:
    """The inputs of the layer that has these tensors, in the order in which they are computed.

    With ``all_experts`` every token reaches every expert, so that router and experts read one
    input. Raises InvalidInput when a linear module of the table is in no balance row, and
    Unsupported where tokens cannot be given to every expert.
    """
    readers = [n for n in tensors if n.is_weight and n.module.role in {"linear", "router"}]
    if all_experts and not _router_sees_what_experts_do(architecture, readers):
        raise Unsupported(
            f"{architecture.id} models route tokens by something else than what experts read, so "
            "that no expert can be given all of them; leave --all-experts out"
        )
    inputs = [
        _input(group, stage)
        for stage, balance in enumerate(architecture.balances)
        for group in _groups(readers, balance, all_experts=all_experts)
    ]
    covered = {module for item in inputs for module in item.modules}
    if missing := sorted({module_of(n.name) for n in readers} - covered):
        raise InvalidInput(f"architecture {architecture.id}: no balance row for {missing}")
    return tuple(inputs)


def _router_sees_what_experts_do(architecture: Architecture, readers: Sequence[TensorName]) -> bool:
    """Whether a balance row has both; also where a layer has no experts."""
    routers = {n.module.name for n in readers if n.module.role == "router"}
    of_experts = any(n.expert is not None for n in readers)
    return not of_experts or any(
        routers & set(row.into) and any("{expert}" in name for name in row.into)
        for row in architecture.balances
    )


def head_input(hp: Hyperparameters) -> Input:
    """The input of the output head."""
    return Input(HEAD, (HEAD,), hp.hidden, stage=0)


def module_of(tensor: str) -> str:
    """The module of a tensor: its neutral name without ``.weight`` or ``.bias``."""
    return tensor.rpartition(".")[0]


def _groups(
    readers: Sequence[TensorName], balance: Balance, *, all_experts: bool
) -> list[list[TensorName]]:
    """The readers of a balance row, together where they read the same."""
    # what experts read beside a module that is none of them is what every token brings
    shared = all_experts and any("{expert}" not in name for name in balance.into)
    groups: dict[int | None, list[TensorName]] = {}
    for name in readers:
        if name.module.name in balance.into:
            groups.setdefault(None if shared else name.expert, []).append(name)
    return list(groups.values())


def _input(group: Sequence[TensorName], stage: int) -> Input:
    modules = tuple(module_of(name.name) for name in group)
    experts = {name.expert for name in group}
    return Input(
        name=modules[0],
        modules=modules,
        columns=group[0].shape[-1],
        stage=stage,
        expert=next(iter(experts)) if len(experts) == 1 else None,
        solved=any(name.module.role == "linear" for name in group),
    )
