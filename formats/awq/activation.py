"""Scales of an activation that no gate multiplies.

AutoAWQ, and transformers and vLLM after it, put a module in the place of such a function that
divides by scales of its own, and look for them in the file. Ours hold ones, which change no number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from zenconvert.errors import Unsupported
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.packed_folder import values_of
from zenconvert.model.architecture import Architecture
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.encoding import Dense
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.layout import Choice


def _scales(architecture: Architecture, hp: Hyperparameters) -> Iterator[tuple[str, int]]:
    """Name and length of what every layer has; none where a gate multiplies the activation."""
    if any(module.name.endswith(".gate") for module in architecture.modules):
        return
    function = architecture.block.activation_module
    for name in architecture.tensor_names(hp):
        if name.module.name == "layers.{layer}.ffn.up" and name.is_weight:
            yield f"{name.hf_module.rpartition('.')[0]}.{function}.scales", name.shape[0]


def ones(checkpoint: Checkpoint, encoding: Dense) -> list[Choice]:
    """Scales that change nothing, for every layer that consumers look for them in."""
    why = "ones: some runtimes divide by it what the activation gives"
    return [
        Choice(
            name, (), (size,), encoding, why=why,
            derived=np.ones(size, encoding.numpy).tobytes(),
        )
        for name, size in _scales(checkpoint.architecture, checkpoint.hyperparameters)
    ]  # fmt: skip


def without_ones(folder: Folder) -> Folder:
    """The folder without such scales. Raises Unsupported where they change numbers."""
    found = dict(_scales(folder.architecture, folder.hyperparameters))
    there = {name: entry for name, entry in folder.entries.items() if name in found}
    for name, entry in there.items():
        if entry.shape != (found[name],) or not (values_of(entry) == 1).all():
            raise Unsupported(
                f"{entry.path}: {name} holds {prod(entry.shape)} numbers that the activation is "
                "divided by, and that no other format has; only ones can be left out"
            )
    if not there:
        return folder
    return replace(folder, entries={n: e for n, e in folder.entries.items() if n not in there})
