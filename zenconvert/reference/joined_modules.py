"""Linear modules of transformers that hold the rows of several, as one module for each of these.

Hooks then see every module of a family's table, and weights can be replaced one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from zenconvert.model.architecture import TensorName
from zenconvert.model.tensor_names import in_rows

IN_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.(.+)")
"""A tensor's name inside of its layer."""


class JoinedLinear(torch.nn.Module):
    """x [..., columns] → the outputs of all parts, one after the other, [..., rows]."""

    def __init__(self, parts: Mapping[str, torch.nn.Linear]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleDict(parts)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., columns] → [..., rows of all]."""
        return torch.cat([part(states) for part in self.parts.values()], -1)

    def part(self, name: TensorName) -> torch.nn.Module:
        """The module of one of the tensors."""
        found: torch.nn.Module = self.parts[_key(name)]
        return found


def part_rows(layer: torch.nn.Module, names: Sequence[TensorName]) -> None:
    """Replace modules of a layer on the meta device that hold the rows of several of ``names``."""
    for stored, parts in in_rows(name for name in names if name.is_weight).items():
        match = IN_LAYER.search(stored.rpartition(".")[0])
        old = submodule(layer, match[1]) if match is not None else None
        if match is None or not isinstance(old, torch.nn.Linear):
            continue
        sizes, bias = {_key(part): part.shape for part in parts}, old.bias is not None
        with torch.device("meta"):
            made = {
                k: torch.nn.Linear(columns, rows, bias=bias) for k, (rows, columns) in sizes.items()
            }
        path, _, attribute = match[1].rpartition(".")
        setattr(layer.get_submodule(path), attribute, JoinedLinear(made))


def submodule(root: torch.nn.Module, path: str) -> torch.nn.Module | None:
    """A module by its path; None where there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _key(name: TensorName) -> str:
    return name.name.rpartition(".")[0].replace(".", "_")
