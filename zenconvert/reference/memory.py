"""What a walk keeps where: hidden states on the device, in memory or on disk; moments in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from zenconvert.base.machine import free_ram
from zenconvert.errors import NotEnoughResources
from zenconvert.model.architecture import TensorName
from zenconvert.reference.hidden import Place
from zenconvert.reference.inputs import Input
from zenconvert.texts.windows import Window

_DEVICE_SHARE: Final = 0.9  # of what is free; the rest is for fragments and libraries
_HOST_SHARE: Final = 0.8
_FLOAT: Final = 4
_SCORES: Final = 3  # attention scores, masked and as probabilities, where they are held whole


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a walk keeps hidden states, and how much room it has for moments at a time."""

    hidden: Place
    moment_bytes: int

    def rounds(self, inputs: Sequence[Input], *, by_stage: bool) -> list[list[Input]]:
        """The inputs of a layer in groups whose moments fit, one forward pass for each group.

        With ``by_stage`` no group mixes stages.
        """
        groups: list[list[Input]] = []
        filled = 0
        for item in inputs:
            full = filled + item.moment_bytes > self.moment_bytes
            if not groups or full or (by_stage and groups[-1][-1].stage != item.stage):
                groups.append([])
                filled = 0
            groups[-1].append(item)
            filled += item.moment_bytes
        return groups


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a walk takes whatever is placed where."""

    block: int
    """Weights of the largest block."""
    activations: int
    """What a batch takes inside a block."""
    hidden: int
    """Hidden states of all windows."""
    largest_moments: int
    """Second moments of the widest input; 0 when there are none to gather."""
    all_moments: int
    """Second moments of all inputs of a layer."""


def needs(
    hidden: int,
    layers: Sequence[tuple[Sequence[TensorName], Sequence[Input]]],
    windows: Sequence[Window],
    *,
    batch_tokens: int,
    item: int,
    moments: bool,
    heads: int = 0,
    beside: int = 0,
) -> Needs:
    """What a walk needs.

    ``layers``: the tensors and the distinct inputs of every layer. ``heads``: those whose attention
    scores are held whole. ``item``: bytes per number. ``beside``: numbers of a token that are kept
    beside its hidden states.
    """
    blocks = [sum(prod(name.shape) for name in tensors) for tensors, _ in layers]
    widest = max(max(name.shape) for tensors, _ in layers for name in tensors)
    moment_bytes = [[one.moment_bytes for one in inputs] for _, inputs in layers if moments]
    lengths = [len(window.ids) for window in windows]
    longest = max(lengths, default=0)
    scores = _SCORES * heads * max(batch_tokens, longest) * longest
    wide = batch_tokens * (4 * hidden + 3 * widest)
    return Needs(
        block=item * max(blocks),
        activations=(wide + scores) * max(item, _FLOAT),
        hidden=sum(lengths) * (hidden + beside) * item,
        largest_moments=max((max(sizes, default=0) for sizes in moment_bytes), default=0),
        all_moments=max((sum(sizes) for sizes in moment_bytes), default=0),
    )


def place(need: Needs, *, device: str, max_vram: int | None, max_ram: int | None) -> Placement:
    """Decide within the budgets, which are most of what is free by default.

    Raises NotEnoughResources when not even one block and the widest moments fit.
    """
    ram = max_ram if max_ram is not None else int(_HOST_SHARE * free_ram())
    staged = 2 * need.block  # the block that computes or waits, and the next one
    on_host = torch.device(device).type != "cuda"
    if on_host:
        budget, fixed, option = ram, staged + need.activations, "--max-ram"
    else:
        free = int(_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
        budget = max_vram if max_vram is not None else free
        fixed, option = need.block + need.activations, "--max-vram"
        if staged > ram:
            raise _too_little("two blocks in memory", staged, ram, "--max-ram")
    least = fixed + need.largest_moments
    if least > budget:
        raise _too_little("one block and its widest moments", least, budget, option)
    room = budget - fixed
    if not on_host:
        if need.hidden + need.all_moments <= room:
            return Placement("device", room - need.hidden)
        return Placement("host" if staged + need.hidden <= ram else "disk", room)
    if need.hidden + need.largest_moments <= room:
        return Placement("host", room - need.hidden)
    return Placement("disk", room)


def _too_little(what: str, least: int, budget: int, option: str) -> NotEnoughResources:
    return NotEnoughResources(
        f"{what} take {least} bytes and {budget} may be used; free memory or raise {option}"
    )
