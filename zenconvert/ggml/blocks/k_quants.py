"""Encoders of the 256-element K-quants Q2_K ... Q6_K, byte for byte as libggml writes them.

Sixteen super-blocks are encoded side by side (:mod:`.lanes`, :mod:`.superblocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml.blocks import Encoder
from zenconvert.ggml.blocks.k_quants_affine import q2_k, q4_k, q5_k
from zenconvert.ggml.blocks.k_quants_symmetric import q3_k, q6_k
from zenconvert.ggml.blocks.superblocks import QK_K
from zenconvert.ggml.types import BY_NAME


def _encoder(type_name: str, kernel: Callable[..., None]) -> Encoder:
    """The encoder of one type from its kernel over super-blocks."""
    type_size = BY_NAME[type_name].type_size

    def encode(
        weights: NDArray[np.float32], importance: NDArray[np.float32] | None, out: NDArray[np.uint8]
    ) -> None:
        by_block = None if importance is None else importance.reshape(-1, QK_K)
        kernel(weights.reshape(-1, QK_K), by_block, out.reshape(-1, type_size))

    return encode


ENCODERS: Final[dict[str, Encoder]] = {
    name: _encoder(name, kernel)
    for name, kernel in {
        "q2_k": q2_k,
        "q3_k": q3_k,
        "q4_k": q4_k,
        "q5_k": q5_k,
        "q6_k": q6_k,
    }.items()
}
