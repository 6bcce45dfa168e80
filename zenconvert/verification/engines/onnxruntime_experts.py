"""A layer of experts, made up at random: in one QMoE node, and by the operator's definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.formats.onnx.packing import pack
from zenconvert.formats.onnx.write.stacking import attributes_of
from zenconvert.model.grouped import GroupedRows
from zenconvert.verification.engines.onnxruntime_nodes import computed, tensor

if TYPE_CHECKING:
    import onnx

EXPERTS: Final = "QMoE"
_COUNT: Final = 3
_CHOSEN: Final = 2
_TOKENS: Final = 4
_SEVERAL: Final = 256
"""Columns of a block up to which a row has three of them, and not one."""


@dataclass(frozen=True)
class ExpertLayer:
    """Weights, tokens and the router's logits."""

    block: int
    gate_up: tuple[GroupedRows, ...]
    """Of every expert, rows in turn: ``[2 · ffn, hidden]``."""
    down: tuple[GroupedRows, ...]
    """``[hidden, ffn]``."""
    x: NDArray[np.float32]
    logits: NDArray[np.float32]

    @classmethod
    def made_up(cls, bits: int, block: int, *, zeros: bool) -> ExpertLayer:
        """A random layer, whose zeros are far from the midpoint."""
        random = np.random.default_rng(0)
        hidden, ffn = block * (3 if block <= _SEVERAL else 1), block

        def weights(rows: int, columns: int) -> GroupedRows:
            shape = (rows, columns // block)
            codes = random.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
            scales = (random.uniform(0.5, 1.5, shape) / columns).astype(np.float32)
            low = random.integers(0, 2, shape).astype(np.uint8) if zeros else None
            return GroupedRows(bits, codes, scales, low, block)

        return cls(
            block,
            tuple(weights(2 * ffn, hidden) for _ in range(_COUNT)),
            tuple(weights(hidden, ffn) for _ in range(_COUNT)),
            random.standard_normal((_TOKENS, hidden)).astype(np.float32),
            random.standard_normal((_TOKENS, _COUNT)).astype(np.float32),
        )

    def defined(self) -> NDArray[np.float32]:
        """What the layer is defined to compute, float32[tokens, hidden]."""
        y = np.zeros_like(self.x)
        for token, (x, logits) in enumerate(zip(self.x, self.logits, strict=True)):
            chosen = np.argsort(-logits)[:_CHOSEN]
            shares = np.exp(logits[chosen] - logits[chosen].max())
            for expert, share in zip(chosen, shares / shares.sum(), strict=True):
                both = self.gate_up[expert].dequantize() @ x
                gate, up = both[::2], both[1::2]
                inner = gate / (1 + np.exp(-gate)) * up
                y[token] += share * (self.down[expert].dequantize() @ inner)
        return y

    def computed(self, level: int) -> NDArray[np.float32]:
        """What onnxruntime computes at an accuracy level."""
        from onnx.helper import make_node

        tensors = [*_tensors("fc1", self.gate_up), *_tensors("fc2", self.down)]
        has_zeros = self.down[0].zeros is not None
        zeros = ["fc1.zeros", "fc2.zeros"] if has_zeros else []
        names = ["x", "logits", "fc1.codes", "fc1.scales", "", "fc2.codes", "fc2.scales", ""]
        node = make_node(
            EXPERTS,
            [*names, *[""] * 3, *zeros],
            ["y"],
            domain="com.microsoft",
            **attributes_of(
                chosen=_CHOSEN,
                bits=self.down[0].bits,
                block=self.block,
                level=level,
                normalised=True,
            ),
        )
        return computed([node], tensors, {"x": self.x, "logits": self.logits})


def _tensors(name: str, experts: tuple[GroupedRows, ...]) -> Iterator[onnx.TensorProto]:
    from onnx import TensorProto

    bits = experts[0].bits
    codes = np.stack([pack(e.codes, bits) for e in experts])
    scales = np.stack([e.scales for e in experts])
    yield tensor(f"{name}.codes", TensorProto.UINT8, codes.shape, codes)
    yield tensor(f"{name}.scales", TensorProto.FLOAT, scales.shape, scales)
    zeros = [pack(e.zeros, bits) for e in experts if e.zeros is not None]
    if zeros:
        yield tensor(
            f"{name}.zeros", TensorProto.UINT8, (len(zeros), *zeros[0].shape), np.stack(zeros)
        )
