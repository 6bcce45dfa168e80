"""Experts of 8-bit floats that a layer keeps in one array, as transformers 5 has them in memory.

::

    …mlp.experts.gate_up_proj            f8 [experts, parts · N, K], gate's rows before up's
    …mlp.experts.gate_up_proj_scale_inv  [experts, parts · ⌈N/n⌉, ⌈K/k⌉], or [experts, parts, 1]
    …mlp.experts.down_proj, …            the same of one part
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, Unsupported
from zenconvert.formats.hf.reader import Folder
from zenconvert.formats.hf.tensor_names import by_stack
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Tensor
from zenconvert.model.scaled import FLOATS, Scaled

SUFFIX: Final = "_scale_inv"
_AXES: Final = 3

One: TypeAlias = Callable[[str, TensorName, Entry, Entry], Tensor]
"""``(module, name, codes, scales) → tensor`` of one expert."""


def of_stacks(folder: Folder, one: One) -> dict[str, tuple[Tensor, ...]]:
    """Entry of the files → the tensors of all experts that it is an array of.

    Raises MissingTensor, CorruptFile, InvalidInput, and Unsupported where a scale is of rows of two
    parts.
    """
    found: dict[str, tuple[Tensor, ...]] = {}
    for stored, names in by_stack(folder.architecture.tensor_names(folder.hyperparameters)).items():
        codes = folder.entries.get(stored)
        if codes is None or codes.dtype not in FLOATS:
            continue
        scales = folder.entries.get(stored + SUFFIX)
        if scales is None:
            raise MissingTensor(f"{codes.path}: {stored}{SUFFIX} is missing beside {stored}")
        tensors = tuple(_experts(codes, scales, names, one))
        found |= {stored: tensors, scales.name: tensors}
    return found


def _experts(
    codes: Entry, scales: Entry, names: Sequence[TensorName], one: One
) -> Iterator[Tensor]:
    _, parts = names[0].module.hf_stack_part
    rows, columns = names[0].shape
    experts = 1 + max(name.expert or 0 for name in names)
    if codes.shape != (experts, parts * rows, columns):
        raise InvalidInput(
            f"{codes.path}: tensor {codes.name!r} has shape {list(codes.shape)}, the config calls "
            f"for {[experts, parts * rows, columns]}"
        )
    if len(scales.shape) != _AXES or scales.shape[0] != experts or scales.shape[1] % parts:
        raise CorruptFile(
            f"{scales.path}: {scales.name} has shape {list(scales.shape)} for {experts} experts of "
            f"{parts} parts"
        )
    lines = scales.shape[1] // parts
    for name in names:
        at = (name.expert or 0) * parts + name.module.hf_stack_part[0]
        tensor = one(
            name.hf.removesuffix(".weight"),
            name,
            _part(codes, at, experts * parts, (rows, columns)),
            _part(scales, at, experts * parts, (lines, scales.shape[2])),
        )
        assert isinstance(tensor.encoding, Scaled)
        height = tensor.encoding.tile[0]
        if parts > 1 and height is not None and rows % height:
            raise Unsupported(
                f"{scales.path}: {scales.name} has a scale for every {height} rows, and some of "
                f"them would hold rows of two of the {parts} modules of {rows} rows"
            )
        yield tensor


def _part(stack: Entry, at: int, count: int, shape: tuple[int, ...]) -> Entry:
    """One of ``count`` equal parts."""
    size = stack.nbytes // count
    return replace(stack, shape=shape, offset=stack.offset + at * size, nbytes=size)
