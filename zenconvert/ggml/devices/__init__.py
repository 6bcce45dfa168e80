"""Encoders of ggml blocks on a device of torch, where Triton is installed: the host's bytes.

What is searched is in :mod:`.searches`; the rest are single operations of torch on whole arrays,
which contract nothing and round as IEEE says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from zenconvert.base.arrays import Array, on_device
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME

if TYPE_CHECKING:
    import torch

_Encoder = Callable[[Array, Array | None], Array]
"""``(rows f32[rows, columns], importance f32[columns] or None)`` → u8[rows * blocks, type_size]."""
_ROOMS: Final = {
    "q2_k": "k_quants", "q3_k": "k_quants", "q4_k": "k_quants", "q5_k": "k_quants",
    "q6_k": "k_quants", "q4_0": "flat", "q4_1": "flat", "q5_0": "flat", "q5_1": "flat",
    "q8_0": "flat", "iq4_nl": "tabled", "iq4_xs": "tabled",
}  # fmt: skip
TYPES: Final = tuple(_ROOMS)
"""Those with kernels."""
_NUMBERS: Final = 1 << 24
"""Of a piece of work: each takes some 60 bytes on the device meanwhile."""
_F16_MAX: Final = 65504.0


def can_encode(type_name: str) -> bool:
    """Whether the type is encoded where its numbers are."""
    return type_name in _ROOMS and find_spec("triton") is not None


def encode(
    type_name: str, values: torch.Tensor, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """:func:`zenconvert.ggml.blocks.encode` of float32[rows, columns], u8[rows, row_bytes] there.

    Raises what that does.
    """
    import torch

    step = max(1, _NUMBERS // max(1, values.shape[1]))
    if not blocks.uses_importance(type_name):
        importance = None
    parts = [_rows(type_name, part, importance) for part in torch.split(values, step)]
    return torch.cat(parts) if parts else values.new_empty(0, dtype=torch.uint8)


def _rows(type_name: str, values: torch.Tensor, importance: torch.Tensor | None) -> Array:
    import torch

    sizes = [values.abs().max()]
    if importance is not None:  # what is negative is refused, too
        sizes.append(torch.where(importance < 0, torch.inf, importance).max())
    usual = float(torch.stack(sizes).sum()) <= _F16_MAX  # NaN is not
    if not usual or values.shape[1] % BY_NAME[type_name].block_size:
        host = None if importance is None else importance.cpu().numpy()
        found = blocks.encode(type_name, values.cpu().numpy(), host)
        return on_device(found, values.device)
    return _encoder(type_name)(values, importance).reshape(len(values), -1)


@cache
def _encoder(type_name: str) -> _Encoder:
    encoder: _Encoder = import_module(f"{__name__}.{_ROOMS[type_name]}").ENCODERS[type_name]
    return encoder
