"""One decoder block in transformers' own modelling code, filled with the weights it is given.

The block is a copy of a layer of the whole model (:mod:`zenconvert.reference.skeleton`), whose
parameters are replaced by the tensors given, so that any architecture and version of transformers
works. Mixture-of-experts blocks are brought into one form first
(:mod:`zenconvert.reference.moe_modules`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from zenconvert.errors import InvalidInput
from zenconvert.model.architecture import TensorName
from zenconvert.reference.beside import Beside
from zenconvert.reference.inputs import module_of
from zenconvert.reference.joined_modules import IN_LAYER, JoinedLinear, part_rows, submodule
from zenconvert.reference.moe_modules import Expert, find_moe, unify_experts
from zenconvert.reference.padding import Padding
from zenconvert.reference.skeleton import Skeleton

_ZERO_BIASES: Final = (torch.nn.Linear, torch.nn.LayerNorm)
"""Modules whose absent bias transformers takes for zeros."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor stands in a block."""

    module: torch.nn.Module
    attribute: str

    @property
    def value(self) -> torch.Tensor | None:
        """The parameter or buffer; None where the module has none of that name."""
        found = getattr(self.module, self.attribute, None)
        return found if isinstance(found, torch.Tensor) else None

    def fill(self, value: torch.Tensor) -> None:
        """Replace it."""
        if self.attribute in self.module._buffers:
            self.module._buffers[self.attribute] = value
        else:
            setattr(self.module, self.attribute, torch.nn.Parameter(value, requires_grad=False))


class Block:
    """A decoder block: hidden states in, hidden states out (after the last block, normed).

    ``modules`` maps neutral module names to torch modules. While :meth:`forward` runs,
    :meth:`rows` turns what a module sees into one row per token.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        number: int,
        layer: torch.nn.Module,
        slots: Mapping[str, Slot],
    ) -> None:
        """``slots``: neutral tensor name → its place in ``layer``."""
        self.skeleton, self.number, self.layer, self.slots = skeleton, number, layer, slots
        self.modules = {module_of(name): slot.module for name, slot in slots.items()}
        self.experts: tuple[Expert, ...] = ()
        self._padding = Padding((), torch.device("cpu"))
        moe: Any = find_moe(layer)
        if moe is not None:
            self.experts = tuple(moe.experts)
            before: tuple[Any, Any] = (moe, self._leave_out_padding)
            if moe is layer:  # it routes tokens itself, and its experts are given all there is
                before = (moe.experts, self._leave_out_all_padding)
            before[0].register_forward_pre_hook(before[1])
            before[0].register_forward_hook(self._put_padding_back)

    def forward(
        self, states: torch.Tensor, lengths: Sequence[int], beside: Beside | None = None
    ) -> torch.Tensor:
        """Windows of these lengths, one after the other: [tokens, hidden] → [tokens, hidden].

        ``beside``: what the layer is given beside, and what it computes for others.
        """
        with torch.inference_mode():
            return self._forward(states, lengths, beside or Beside())

    def traced(self, states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """As :meth:`forward`, for states that require gradients; weights have none."""
        with torch.enable_grad():
            return self._forward(states, lengths, Beside())

    def _forward(
        self, states: torch.Tensor, lengths: Sequence[int], beside: Beside
    ) -> torch.Tensor:
        padding = self._padding = Padding(lengths, states.device)
        inputs = None if beside.inputs is None else padding.pad(beside.inputs)
        handed = beside.read(self.number, padding)
        padded = padding.pad(states)
        output = self.skeleton.run(self.number, self.layer, padded, inputs, handed)
        beside.write(self.number, padding, handed)
        return self.rows(output)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Activations [..., columns] as [tokens, columns], without padding."""
        return self._padding.rows(values)

    def _leave_out_padding(self, module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        """No expert should see padding: it would count as a routed token."""
        return (self.rows(args[0])[None], *args[1:])

    def _leave_out_all_padding(self, module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        """Of states, of the experts that were chosen and of their shares."""
        return tuple(self.rows(value) for value in args)

    def _put_padding_back(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # some add the router's logits
            return (self._padding.back(output[0]), *output[1:])
        return self._padding.back(output)

    def weight(self, tensor: str) -> torch.Tensor:
        """A parameter by its neutral tensor name, as the block holds it."""
        value = self.slots[tensor].value
        assert value is not None
        return value

    def set_weight(self, tensor: str, value: torch.Tensor) -> None:
        """Replace a parameter; the new one is brought to the dtype and device of the old one."""
        self.slots[tensor].fill(value.to(self.weight(tensor)))


def build_block(
    skeleton: Skeleton,
    number: int,
    names: Sequence[TensorName],
    weights: Mapping[str, torch.Tensor],
    *,
    where: str,
) -> Block:
    """Block ``number`` of a model, made of ``weights`` (neutral tensor name → tensor).

    ``names`` are the tensors that the block may have, the final norm among them for the last block
    only. A bias that the config announces and nobody gives is zero, as transformers takes it.
    Raises InvalidInput for other tensors that are missing, for one that the config has no place for
    and for one of another shape; Unsupported for experts held in an unknown way.
    """
    layer = skeleton.layer(number)
    unify_experts(layer, where)
    part_rows(layer, names)
    roots = (layer, skeleton.base)
    slots = {name.name: slot for name in names if (slot := _slot(roots, name)) is not None}
    given = [name for name in names if name.name in weights]
    if unexpected := sorted(name.hf for name in given if name.name not in slots):
        raise InvalidInput(f"{where}: unexpected keys for the config: {unexpected}")
    for name in given:
        slot, value = slots[name.name], weights[name.name]
        wanted = slot.value
        if wanted is not None and wanted.shape != value.shape:
            if wanted.numel() != value.numel():
                raise InvalidInput(
                    f"{where}: {name.hf} should be {list(wanted.shape)} for the config, found "
                    f"{list(value.shape)}"
                )
            value = value.reshape(wanted.shape)
        slot.fill(value)
    filled = {(id(slots[n.name].module), slots[n.name].attribute) for n in given}
    _complete(_stored(layer), filled, where)
    if number == len(skeleton.layers) - 1:
        _complete(_outside_layers(skeleton), filled, where)
    return Block(skeleton, number, layer, slots)


def _slot(roots: tuple[torch.nn.Module, torch.nn.Module], name: TensorName) -> Slot | None:
    """Where a tensor belongs; None where the model has no such place."""
    layer, base = roots
    for path in filter(None, (name.hf, name.hf_also, name.hf_rows)):
        match = IN_LAYER.search(path)
        owner, _, attribute = (match[1] if match else path).rpartition(".")
        if match is None:
            module = _outside(base, owner)
        elif name.expert is not None:
            moe = find_moe(layer)
            part = module_of(name.name).rpartition(".")[2]
            module = getattr(moe.experts[name.expert], part, None) if moe is not None else None
            attribute = name.name.rpartition(".")[2]
        else:
            module = submodule(layer, owner)
            if isinstance(module, JoinedLinear):
                module = module.part(name)
        if module is not None and Slot(module, attribute).value is not None:
            return Slot(module, attribute)
    return None


def _outside(base: torch.nn.Module, path: str) -> torch.nn.Module | None:
    """A module of the base model; checkpoints put prefixes before its path."""
    while path:
        if (found := submodule(base, path)) is not None:
            return found
        path = path.partition(".")[2]
    return None


_Places = Iterable[tuple[str, torch.nn.Module, str]]


def _complete(places: _Places, filled: set[tuple[int, str]], where: str) -> None:
    """Zero absent biases. Raises InvalidInput when anything else is missing."""
    missing = []
    for path, module, attribute in places:
        if (id(module), attribute) in filled:
            continue
        value = Slot(module, attribute).value
        if value is not None and attribute == "bias" and isinstance(module, _ZERO_BIASES):
            weight = module.weight
            zeros = torch.zeros(value.shape, dtype=weight.dtype, device=weight.device)
            Slot(module, attribute).fill(zeros)
        else:
            missing.append(f"{path}.{attribute}")
    if missing:
        raise InvalidInput(f"{where}: missing keys for the config: {sorted(missing)}")


def _outside_layers(skeleton: Skeleton) -> _Places:
    """What the base model has beside its layers and what makes their inputs: the final norm."""
    before = (skeleton.base.get_input_embeddings(), *skeleton.inputs.modules)
    inside = {id(m) for layer in skeleton.layers for m in layer.modules()}
    inside |= {id(module) for module in before}
    return (place for place in _stored(skeleton.base) if id(place[1]) not in inside)


def _stored(layer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """(path, module, attribute) of everything that a checkpoint should hold."""
    for path, module in layer.named_modules():
        for attribute, _ in module.named_parameters(recurse=False):
            yield path, module, attribute
        for attribute, _ in module.named_buffers(recurse=False):
            if attribute not in module._non_persistent_buffers_set:
                yield path, module, attribute
