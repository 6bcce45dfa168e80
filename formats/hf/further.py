"""Layers behind the last, which predict further tokens: folders keep them in floats as they are.

Nobody here computes them, so nothing of them is quantized; runtimes find them under their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.checkpoint import Checkpoint, StoredTensor, Tensor
from zenconvert.model.encoding import DENSE, Dense
from zenconvert.model.layout import Choice

_FLOATS: Final = ("f32", "f16", "bf16")
_MATRIX: Final = 2
_WHY: Final = "it is of a layer that predicts further tokens, which stays in floats"


def tensors_of(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """HF name → tensor; none of them where some are no plain floats."""
    if any(entry.dtype not in _FLOATS for entry in entries.values()):
        return {}
    return {
        name: Tensor(
            name, entry.shape, DENSE[entry.dtype], StoredTensor(entry.path, entry.offset, name)
        )
        for name, entry in entries.items()
    }


def choices_of(checkpoint: Checkpoint, dtype: Dense | None = None) -> list[Choice]:
    """All of them in a folder, in ``dtype`` or in floats of their own."""
    return [
        Choice(
            name,
            (tensor,),
            tensor.shape,
            dtype or tensor.encoding.floats,
            why=_WHY,
            is_linear=len(tensor.shape) == _MATRIX,
        )
        for name, tensor in checkpoint.predicting.items()
    ]
