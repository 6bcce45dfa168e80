"""Does the installed onnxruntime compute the integer operators of a graph as they are defined?

Some versions do not: zero points are ignored beside ``g_idx``, two-bit rows that do not fill bytes
are fused wrongly, long blocks give zeros. For every kind of operator that a graph has, a small one
of that kind is made, run, and compared with its definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.formats.onnx.packing import pack
from zenconvert.model.encoding import F32
from zenconvert.model.grouped import GroupedRows
from zenconvert.verification.engines.onnxruntime_experts import EXPERTS, ExpertLayer
from zenconvert.verification.engines.onnxruntime_nodes import computed, tensor

if TYPE_CHECKING:
    import onnx

_TOLERANCE: Final = 0.05
"""Of the norm of a product; activations in int8 cost about 0.005."""
_BLOCKS: Final = 3
_ROWS: Final = 24
_INPUTS: Final = 4
_LONGEST: Final = 1024
"""Columns of a block of experts, whose size goes with its square."""
_TYPES: Final = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True), 2: (8, False),
                 3: (8, True)}  # fmt: skip
"""TensorProto data type → bits, signed."""


@dataclass(frozen=True, order=True, slots=True)
class Kind:
    """What distinguishes the kernels of one integer product."""

    op_type: str
    bits: int
    block: int
    zeros: bool
    index: bool
    level: int
    remainder: int
    """Rows beyond a multiple of four."""
    signed: bool = False

    def __str__(self) -> str:
        parts = [f"{self.op_type} of {self.bits} bits in blocks of {self.block}"]
        parts += ["zero points"] if self.zeros else []
        parts += ["g_idx"] if self.index else []
        parts += [f"{self.remainder} rows beyond fours"] if self.remainder else []
        return " with ".join(parts)


def probe(graph: Path) -> list[str]:
    """What this onnxruntime computes wrongly of a graph: one line for every kind of operator."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    return [f"{kind}: {error}" for kind in sorted(set(_kinds(model))) if (error := check(kind))]


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime: one for every status, without a common class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*found, RuntimeError)


def _kinds(model: onnx.ModelProto) -> Iterator[Kind]:
    shapes = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    for node in model.graph.node:
        given = {a.name: a.i for a in node.attribute}
        present = [bool(name) for name in node.input] + [False] * 13
        if node.op_type == "MatMulNBits":
            yield Kind(
                node.op_type,
                given.get("bits", 4),
                given.get("block_size", 32),
                present[3],
                present[4],
                given.get("accuracy_level", 0),
                given.get("N", 0) % 4,
            )
        if node.op_type == EXPERTS:
            yield Kind(
                node.op_type,
                given.get("expert_weight_bits", 4),
                min(given.get("block_size", 32), _LONGEST),
                any(present[11:13]),
                False,
                given.get("accuracy_level", 0),
                0,
            )
        if node.op_type == "DequantizeLinear" and given.get("axis") == 0:
            dtype, shape = shapes.get(node.input[0], (0, ()))
            if dtype in _TYPES and len(shape) == 2:
                bits, signed = _TYPES[dtype]
                block = given.get("block_size", 0)
                yield Kind(node.op_type, bits, block, present[2], False, 0, shape[1] % 4, signed)


def check(kind: Kind) -> str | None:
    """None where the product is right; else what is wrong."""
    try:
        found, wanted = _experts(kind) if kind.op_type == EXPERTS else _product(kind)
    except failures() as error:
        return f"it is refused ({str(error).splitlines()[0]})"
    off = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return None if off <= _TOLERANCE else f"off by {100 * off:.0f} %"


def _product(kind: Kind) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, order = made_up(kind)
    shape = (_INPUTS, rows.codes.shape[1])
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return run(kind, rows, order, x), x @ rows.dequantize().T


def _experts(kind: Kind) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    layer = ExpertLayer.made_up(kind.bits, kind.block, zeros=kind.zeros)
    return layer.computed(kind.level), layer.defined()


def made_up(kind: Kind) -> tuple[GroupedRows, NDArray[np.int32] | None]:
    """Random rows of a kind, whose zeros are far from the midpoint."""
    random = np.random.default_rng(0)
    shape = (_ROWS + kind.remainder, _BLOCKS * kind.block)
    codes = random.integers(0, 1 << kind.bits, shape).astype(np.uint8)
    scales = random.uniform(0.5, 1.5, (shape[0], _BLOCKS)).astype(F32.numpy)
    zeros = random.integers(0, 2, scales.shape).astype(np.uint8) if kind.zeros else None
    order = random.permutation(np.repeat(np.arange(_BLOCKS, dtype=np.int32), kind.block))
    index = order if kind.index else None
    return GroupedRows(kind.bits, codes, scales, zeros, kind.block, index), index


def run(
    kind: Kind, rows: GroupedRows, index: NDArray[np.int32] | None, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What onnxruntime computes for ``x · Wᵀ``."""
    from onnx.helper import make_node

    tensors = list(_tensors(kind, rows, index))
    if kind.op_type == "MatMulNBits":
        names = ["x", "codes", "scales", "zeros" if kind.zeros else ""]
        names += ["index"] if kind.index else []
        given = {"K": x.shape[1], "N": len(rows.codes), "bits": kind.bits}
        given |= {"block_size": kind.block, "accuracy_level": kind.level}
        nodes = [make_node(kind.op_type, names, ["y"], domain="com.microsoft", **given)]
    else:
        names = [t.name for t in tensors]
        nodes = [
            make_node(kind.op_type, names, ["w"], axis=0, block_size=kind.block),
            make_node("MatMul", ["x", "w"], ["y"]),
        ]
    return computed(nodes, tensors, {"x": x})


def _tensors(kind: Kind, rows: GroupedRows, index: NDArray[np.int32] | None) -> Iterator[Any]:
    from onnx import TensorProto

    count, columns = rows.codes.shape
    float_type = TensorProto.FLOAT
    if kind.op_type == "MatMulNBits":
        byte = TensorProto.UINT8
        codes = pack(rows.codes, kind.bits)
        yield tensor("codes", byte, (count, _BLOCKS, codes.shape[1] // _BLOCKS), codes)
        yield tensor("scales", float_type, rows.scales.shape, rows.scales)
        if rows.zeros is not None:
            zeros = pack(rows.zeros, kind.bits)
            yield tensor("zeros", byte, zeros.shape, zeros)
        if index is not None:
            yield tensor("index", TensorProto.INT32, index.shape, index)
        return
    dtype = next(t for t, known in _TYPES.items() if known == (kind.bits, kind.signed))
    flip = np.uint8(rows.midpoint if kind.signed else 0)
    flat = pack((rows.codes.T ^ flip).reshape(1, -1), kind.bits)
    yield tensor("codes", dtype, (columns, count), flat)
    yield tensor("scales", float_type, rows.scales.shape[::-1], rows.scales.T)
    if rows.zeros is not None:
        flat = pack((rows.zeros.T ^ flip).reshape(1, -1), kind.bits)
        yield tensor("zeros", dtype, rows.scales.shape[::-1], flat)
