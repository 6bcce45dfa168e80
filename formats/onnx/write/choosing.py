"""How every tensor of a model is stored in a graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np

from zenconvert.errors import UsageError
from zenconvert.formats.hf.writer import refuse_pre
from zenconvert.formats.onnx import rotary
from zenconvert.formats.onnx.codecs import BITS, BlockCodec, NBitsCodec, block_of
from zenconvert.formats.onnx.write.act_order import column_order
from zenconvert.formats.onnx.write.target_type import TargetType, parse
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, StoredPieces, Tensor
from zenconvert.model.encoding import F16, F32, Dense, Grouped
from zenconvert.model.layout import Choice
from zenconvert.model.sliding import windows
from zenconvert.model.target import Options, Scheme, Target

ORDER: Final = "input_order"
_MOST_TABLES: Final = 1024 * 1024 * 1024
"""Bytes of the tables of cosines and sines: two million positions of heads of 128 in f32."""
_FLOATS: Final = {"f32": F32, "f16": F16}


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """The storage of every tensor, and the tables that the graph needs. Raises UsageError."""
    del importance  # weighs the search for scales
    _refuse_foreign(options)
    refuse_pre(checkpoint, options)
    chooser = _Chooser(checkpoint, parse(target.type), options)
    choices = [c for n in chooser.names if (c := chooser.choice(n)) is not None]
    return [*_tables(checkpoint, chooser.kind), *_orders(choices), *choices]


def _refuse_foreign(options: Options) -> None:
    if options.pure:
        raise UsageError("--pure makes no sense for onnx targets")


def _middle(tensor: Tensor) -> int:
    """The middle of the codes that a tensor has in its own file."""
    grid = tensor.encoding.grid()
    assert grid is not None  # only such tensors have minimums
    if isinstance(tensor.stored, StoredPieces):
        return int(getattr(tensor.stored.codec, "middle", 0)) or 1 << (grid.bits - 1)
    return 1 << (grid.bits - 1)


def _tables(checkpoint: Checkpoint, kind: TargetType) -> list[Choice]:
    if kind.standard:
        return []
    hp = checkpoint.hyperparameters
    tables = rotary.tables_of(hp, windows(checkpoint.architecture, checkpoint.config, hp))
    size = 2 * sum(prod(table.shape) for table in tables) * kind.floats.numpy.itemsize
    if size > _MOST_TABLES:
        raise UsageError(
            f"{checkpoint.path}: the cosines and sines of {hp.context} positions "
            f"(max_position_embeddings) take {size / 1e9:.1f} GB; lower that number to the "
            f"positions that will be used, or convert to a -standard type, which computes them"
        )
    why = "computed from the config's rotary embedding"
    return [
        Choice(name, (), values.shape, kind.floats, why=why, derived=values.tobytes())
        for table in tables
        for name, values in zip(table.names, rotary.values_of(table, kind.floats), strict=True)
    ]


def _orders(choices: list[Choice]) -> Iterator[Choice]:
    """Every order of columns once, under the name of the first module that has it."""
    found: set[tuple[int, ...]] = set()
    for choice in choices:
        if choice.columns is not None and choice.columns not in found:
            found.add(choice.columns)
            data = np.array(choice.columns, dtype="<i8").tobytes()
            why, shape = "act-order: the order of the inputs", (len(choice.columns),)
            yield Choice(order_name(choice), (), shape, Dense("i64"), why=why, derived=data)


def order_name(choice: Choice) -> str:
    """What the order of a weight's columns is called; the first weight that has it names it."""
    return f"{choice.name.removesuffix('.weight')}.{ORDER}"


def _is_looked_up(name: TensorName) -> bool:
    """Whether rows of a matrix are looked up, and it is not multiplied with."""
    return name.module.name in ("embed", "inputs.embed")


@dataclass(frozen=True)
class _Chooser:
    """Decides tensor by tensor."""

    checkpoint: Checkpoint
    kind: TargetType
    options: Options

    @property
    def names(self) -> list[TensorName]:
        """Every tensor that the model may have, in the order of the graph."""
        checkpoint = self.checkpoint
        return list(checkpoint.architecture.tensor_names(checkpoint.hyperparameters))

    def choice(self, name: TensorName) -> Choice | None:
        """The storage of one tensor; None where the model does not have it."""
        tensor = self.checkpoint.tensors.get(name.name)
        if name.unread:
            return None
        if tensor is None:
            if name.module.role != "head" or self.options.output_type is None:
                return None
            tensor = self.checkpoint.tensors["embed.weight"]  # the head is untied
        wanted, why = self._wanted(tensor, name)
        if (grid := wanted.grouped) is None:
            turned = name.is_weight and name.module.role in {"linear", "router", "head"}
            shape = tensor.shape[::-1] if turned else tensor.shape
            adds = name.module.role == "norm" and self.checkpoint.architecture.block.norms_add_one
            change = "add_one" if adds else None
            return Choice(
                name.hf, (tensor,), shape, wanted, change=change, why=why, transposed=turned
            )
        return self._grouped(tensor, name, grid, why)

    def _wanted(self, tensor: Tensor, name: TensorName) -> tuple[Grouped | Dense, str]:
        """The grid or float type of one tensor, and what decided it."""
        role, floats = name.module.role, self.kind.floats
        role = "embed" if _is_looked_up(name) else role
        if role == "norm" or not name.is_weight:
            return floats, "norms and biases have the type of the activations"
        for pattern, kind in self.options.tensor_types:
            if re.search(pattern, name.hf):
                return self._named(kind, name), f"the name matches {pattern!r}"
        asked = {"embed": self.options.embedding_type, "head": self.options.output_type}.get(role)
        if asked is not None:
            return self._named(asked, name), f"{asked} was asked for"
        if tensor.name in self.checkpoint.kept:
            return floats, "the solver keeps it at higher precision"
        own = self._own(tensor)
        if self.kind.keeps_grids and own is not None and self._can_keep(own, name):
            return own, "its own grid"
        if role != "linear" or self.kind.scheme is None:
            return floats, f"{floats}, as nothing else was asked for"
        return self._following(own) or self._grid(self.kind.scheme), "linear weight"

    def _named(self, text: str, name: TensorName) -> Grouped | Dense:
        """A type that was given by name for one tensor."""
        if text in _FLOATS:
            return _FLOATS[text]
        kind = parse(text)
        if kind.scheme is None or kind != replace(
            TargetType(), bits=kind.bits, group=kind.group, symmetric=kind.symmetric
        ):
            raise UsageError(
                f"{name.hf} cannot be stored as {text!r}; one tensor can be f32, f16, or int2, "
                "int4 or int8 with -gGROUP, -sym and -asym"
            )
        return self._grid(kind.scheme)

    def _grid(self, scheme: Scheme) -> Grouped:
        return Grouped(scheme.bits, scheme.group, scheme.symmetric, self.kind.floats)

    def _own(self, tensor: Tensor) -> Grouped | None:
        """The grid that a tensor is on already, in blocks that the operators take."""
        grid = tensor.encoding.grid()
        if grid is None:
            return None
        block = block_of(grid.group, tensor.columns)
        if block is None:
            return None
        return replace(
            grid,
            bits=next(b for b in BITS if b >= grid.bits),
            group=block,
            scale=self.kind.floats,
            offset=grid.offset and F32,
        )

    def _can_keep(self, own: Grouped, name: TensorName) -> bool:
        """Embeddings in standard operators have bytes, and are not the head too."""
        tied = self.checkpoint.hyperparameters.tied and name.module.role == "embed"
        return not _is_looked_up(name) or not self.kind.standard or (own.bits == 8 and not tied)

    def _following(self, own: Grouped | None) -> Grouped | None:
        """The target's bits with the groups and zeros that a tensor has, unless they are named."""
        kind = self.kind
        if own is None or kind.bits is None or own.bits > kind.bits:
            return None
        if own.offset is not None and (kind.group is not None or kind.symmetric is not None):
            return None
        symmetric = own.symmetric if kind.symmetric is None else kind.symmetric
        return replace(own, bits=kind.bits, group=kind.group or own.group, symmetric=symmetric)

    def _grouped(self, tensor: Tensor, name: TensorName, grid: Grouped, why: str) -> Choice:
        embed = _is_looked_up(name)
        columns = column_order(tensor) if grid.ordered else None
        if grid.group == tensor.columns:
            grid = replace(grid, group=None)
        scheme = Scheme(grid.bits, grid.group, grid.symmetric)
        middle = _middle(tensor) if grid.offset is not None else 0
        codec: NBitsCodec | BlockCodec = NBitsCodec(explicit=embed, middle=middle)
        if self.kind.standard and not embed:
            codec = BlockCodec(middle=middle)
        if embed:
            self._check_embedding(grid, tensor)
            grid = replace(grid, symmetric=False)  # providers disagree on what no zeros mean
        return Choice(
            name.hf,
            (tensor,),
            tensor.shape,
            replace(grid, ordered=False),
            why=why,
            codec=codec,
            scheme=scheme,
            columns=columns,
            sheds_zeros=not embed,
        )

    def _check_embedding(self, grid: Grouped, tensor: Tensor) -> None:
        if tensor.columns % (grid.group or 1):
            raise UsageError(
                f"an embedding of {tensor.columns} columns has no whole blocks of {grid.group}"
            )
        if not self.kind.standard:
            return
        if grid.bits != 8:
            raise UsageError("an embedding in standard operators can have 8 bits, or be f32 or f16")
        tied = self.checkpoint.hyperparameters.tied and tensor.name == "embed.weight"
        if tied and self.options.output_type is None:
            raise UsageError(
                "in standard operators an integer embedding cannot be the output head too; give "
                "the head a type of its own with --output-type"
            )
