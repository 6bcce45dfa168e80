"""Nodes → matrices: what a product multiplies with, and how its numbers are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from zenconvert.errors import CorruptFile, Unsupported
from zenconvert.formats.onnx.codecs import (
    BITS,
    CODES,
    SCALES,
    ZEROS,
    BlockCodec,
    NBitsCodec,
)
from zenconvert.formats.onnx.read import minimums
from zenconvert.formats.onnx.read.container import Initializer
from zenconvert.formats.onnx.read.graph_view import GraphView, attributes, inputs
from zenconvert.formats.onnx.read.minimums import Minimums
from zenconvert.model.encoding import Dense, Grouped
from zenconvert.model.grouped import OFFSETS, GroupedCodec

if TYPE_CHECKING:
    import onnx

FLOATS: Final = frozenset({"f32", "f16", "bf16", "f64"})
INTEGERS: Final = {"u4": 4, "i4": 4, "u2": 2, "i2": 2, "u8": 8, "i8": 8}
"""Types of codes → their bits."""


@dataclass(frozen=True)
class Matrix:
    """A matrix ``[out, in]`` of the graph."""

    shape: tuple[int, int]
    arrays: Mapping[str, Initializer]
    """Piece name → array; one under "" for a dense matrix."""
    encoding: Dense | Grouped
    codec: GroupedCodec | None = None
    transposed: bool = False
    """A dense matrix that is stored ``[in, out]``."""
    output: str = ""
    """The product in the graph, without any bias."""
    first: int = 0
    """The line of the arrays that is the first row, where they hold more matrices."""
    step: int = 1
    """Lines from row to row."""


def linear(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """The matrix of a product with activations; None for any other node."""
    if node.op_type == "MatMulNBits":
        return _nbits(view, node)
    if node.op_type == "MatMul" and len(node.input) == 2:
        weight = node.input[1]
        if (found := view.producer(_unshaped(view, weight), "DequantizeLinear")) is not None:
            return _dequantized(view, found, node)
        return dense(view.initializer(weight), transposed=True) or _turned(view, weight)
    if node.op_type == "Gemm":
        given = attributes(node)
        plain = given.get("alpha", 1.0) == 1.0 and not given.get("transA", 0)
        weight = view.initializer(inputs(node, 2)[1])
        return dense(weight, transposed=not given.get("transB", 0)) if plain else None
    return None


def _unshaped(view: GraphView, value: str) -> str:
    """The value before a Reshape that leaves a matrix as it was, which keeps products unfused."""
    node = view.producer(value, "Reshape")
    before = node and view.producer(node.input[0], "DequantizeLinear")
    if node is None or before is None:
        return value
    shape, codes = view.initializer(inputs(node, 2)[1]), view.initializer(before.input[0])
    if shape is None or codes is None or (shape.dtype, shape.shape) != ("i64", (2,)):
        return value
    kept = tuple(np.frombuffer(shape.read(), dtype=np.int64).tolist()) == codes.shape
    return node.input[0] if kept else value


def dense(array: Initializer | None, *, transposed: bool) -> Matrix | None:
    """A matrix of floats, stored ``[in, out]`` where it is transposed; None for anything else."""
    if array is None or len(array.shape) != 2 or array.dtype not in FLOATS:
        return None
    first, second = array.shape
    shape = (second, first) if transposed else (first, second)
    return Matrix(shape, {"": array}, Dense(array.dtype), transposed=transposed)


def _turned(view: GraphView, value: str) -> Matrix | None:
    """A matrix that the graph transposes: dense, or out of DequantizeLinear along axis 1."""
    node = view.producer(value, "Transpose")
    if node is None or attributes(node).get("perm", (1, 0)) != (1, 0):
        return None
    source = node.input[0]
    if (found := view.producer(source, "DequantizeLinear")) is not None:
        return _dequantized_rows(view, found)
    return dense(view.initializer(source), transposed=False)


def _nbits(view: GraphView, node: onnx.NodeProto) -> Matrix:
    given, where = attributes(node), f"{view.file.path}: node {node.name!r} (MatMulNBits)"
    if given.get("weight_prepacked", 0):
        raise Unsupported(
            f"{where} has weights prepacked for one kind of device; export it without"
        )
    _, codes, scales, zeros, index, _ = inputs(node, 6)
    columns, rows = given.get("K", 0), given.get("N", 0)
    bits, block = given.get("bits", 4), given.get("block_size", 0)
    if bits not in BITS or block < 16 or block & (block - 1) or columns < 1 or rows < 1:
        raise CorruptFile(f"{where}: bits {bits}, block_size {block}, K {columns}, N {rows}")
    arrays = arrays_of(view, where, {CODES: codes, SCALES: scales, ZEROS: zeros})
    if ZEROS in arrays and arrays[ZEROS].dtype != "u8":
        raise Unsupported(f"{where}: zero points of type {arrays[ZEROS].dtype} are not read")
    if arrays[CODES].dtype != "u8":
        raise CorruptFile(f"{where}: codes of type {arrays[CODES].dtype}; they should be u8")
    order = _order(view, node.input[0], columns, where)
    groups = _index(view, index, columns, block, where)
    found = minimums.of_product(view, node.output[0])
    arrays, offset = with_minimums(arrays, found)
    grid = Grouped(
        bits,
        None if block >= columns else block,
        ZEROS not in arrays and offset is None,
        Dense(arrays[SCALES].dtype),
        order is not None or groups is not None,
        offset,
    )
    codec = NBitsCodec(
        columns,
        block if block > columns else None,
        order,
        groups,
        middle=found.middle if found is not None else 0,
        explicit=found is not None and ZEROS in arrays,
    )
    output = found.output if found is not None else ""
    matrix = Matrix((rows, columns), arrays, grid, codec, output=output)
    check_sizes(matrix, where)
    return matrix


def arrays_of(view: GraphView, where: str, values: Mapping[str, str]) -> dict[str, Initializer]:
    """The initializers that values are, without those that are left out. Raises Unsupported."""
    found = {}
    for piece, value in values.items():
        if not value:
            continue
        array = view.file.initializers.get(value)
        if array is None:
            raise Unsupported(f"{where}: its {piece} {value!r} are computed, and not stored")
        found[piece] = array
    return found


def with_minimums(
    arrays: dict[str, Initializer], found: Minimums | None
) -> tuple[dict[str, Initializer], Dense | None]:
    """The arrays with any minimums, and their type."""
    if found is None:
        return arrays, None
    return {**arrays, OFFSETS: found.offsets}, Dense(found.offsets.dtype)


def _order(view: GraphView, x: str, columns: int, where: str) -> tuple[int, ...] | None:
    """The order in which the graph gathers activations for a matrix; None where it does not."""
    node = view.producer(x, "Gather")
    if node is None or attributes(node).get("axis", 0) not in {-1, 2}:
        return None
    array = view.file.initializers.get(node.input[1])
    if array is None or array.shape != (columns,) or array.dtype not in {"i64", "i32"}:
        return None
    order = np.frombuffer(array.read(), dtype=Dense(array.dtype).numpy)
    if not np.array_equal(np.sort(order), np.arange(columns)):
        raise CorruptFile(f"{where}: {array.name!r} is no order of {columns} columns")
    return tuple(order.tolist())


def _index(
    view: GraphView, value: str, columns: int, block: int, where: str
) -> tuple[int, ...] | None:
    """``g_idx``: the group of every column."""
    if not value:
        return None
    array = arrays_of(view, where, {"g_idx": value})["g_idx"]
    groups = -(-columns // block)
    if array.dtype != "i32" or len(array.shape) != 1 or array.shape[0] < columns:
        raise CorruptFile(f"{where}: g_idx should be i32[{columns}], found {array.shape}")
    index = np.frombuffer(array.read(), dtype=np.int32)[:columns]
    if index.min() < 0 or index.max() >= groups:
        raise CorruptFile(f"{where}: g_idx names groups {index.min()} to {index.max()}")
    return tuple(index.tolist())


def _dequantized(view: GraphView, node: onnx.NodeProto, product: onnx.NodeProto) -> Matrix:
    """``[in, out]`` in blocks along axis 0, or one scale for every output, of a product."""
    where = f"{view.file.path}: node {node.name!r} (DequantizeLinear)"
    arrays, bits, signed = _integers(view, node, where)
    given, (columns, rows) = attributes(node), arrays[CODES].shape
    block, axis = given.get("block_size", 0), given.get("axis", 1)
    one_scale = not block and axis in {1, -1} and arrays[SCALES].shape == (rows,)
    if not one_scale and (axis not in {0, -2} or block < 1):
        raise Unsupported(f"{where}: blocks of {block} along axis {axis} are not read")
    if rows * bits % 8:
        raise Unsupported(f"{where}: {rows} outputs of {bits} bits do not fill whole bytes")
    group = None if one_scale or block >= columns else block
    order, scale = _order(view, product.input[0], columns, where), Dense(arrays[SCALES].dtype)
    found = minimums.of_product(view, product.output[0])
    arrays, offset = with_minimums(arrays, found)
    symmetric = ZEROS not in arrays and offset is None
    grid = Grouped(bits, group, symmetric, scale, order is not None, offset)
    codec = BlockCodec(signed=signed, order=order, middle=found.middle if found is not None else 0)
    output = found.output if found is not None else ""
    matrix = Matrix((rows, columns), arrays, grid, codec, output=output)
    check_sizes(matrix, where)
    return matrix


def _dequantized_rows(view: GraphView, node: onnx.NodeProto) -> Matrix:
    """``[out, in]`` in blocks along axis 1, which the graph then transposes."""
    where = f"{view.file.path}: node {node.name!r} (DequantizeLinear)"
    arrays, bits, signed = _integers(view, node, where)
    given, (rows, columns) = attributes(node), arrays[CODES].shape
    block = given.get("block_size", 0)
    if given.get("axis", 1) not in {1, -1} or block < 1 or columns * bits % 8:
        raise Unsupported(f"{where}: blocks of {block} in rows of {columns} are not read")
    if ZEROS in arrays and -(-columns // block) * bits % 8:
        raise Unsupported(f"{where}: its zero points do not fill whole bytes of a row")
    group = None if block >= columns else block
    grid = Grouped(bits, group, ZEROS not in arrays, Dense(arrays[SCALES].dtype))
    matrix = Matrix((rows, columns), arrays, grid, NBitsCodec(columns, signed=signed))
    check_sizes(matrix, where)
    return matrix


def _integers(
    view: GraphView, node: onnx.NodeProto, where: str
) -> tuple[dict[str, Initializer], int, bool]:
    """The arrays of a DequantizeLinear, the bits of its codes, and whether they are signed."""
    codes, scales, zeros = inputs(node, 3)
    arrays = arrays_of(view, where, {CODES: codes, SCALES: scales, ZEROS: zeros})
    dtype = arrays[CODES].dtype
    if dtype not in INTEGERS or len(arrays[CODES].shape) != 2:
        raise Unsupported(f"{where}: weights of type {dtype} {arrays[CODES].shape} are not read")
    signed = dtype.startswith("i")
    if ZEROS in arrays and arrays[ZEROS].dtype != dtype:
        raise CorruptFile(f"{where}: its zero points are {arrays[ZEROS].dtype}, its codes {dtype}")
    if ZEROS not in arrays and not signed:
        raise Unsupported(f"{where}: unsigned codes without zero points are not read")
    return arrays, INTEGERS[dtype], signed


def check_sizes(matrix: Matrix, where: str, count: int = 1) -> None:
    """Raise CorruptFile where an array has not the size that the node calls for.

    ``count`` is the number of matrices that share the arrays.
    """
    grid = matrix.encoding.grouped
    assert grid is not None
    assert matrix.codec is not None
    for piece in matrix.codec.pieces(grid, matrix.shape):
        array = matrix.arrays.get(piece.name)
        if array is None:
            raise CorruptFile(f"{where}: it has no {piece.name}")
        if array.nbytes != count * piece.nbytes:
            matrices = "a matrix" if count == 1 else f"{count} matrices"
            raise CorruptFile(
                f"{where}: {array.name!r} has {array.nbytes} bytes; {matrices} "
                f"{list(matrix.shape)} of {matrix.encoding} call{'s'[: count == 1]} for "
                f"{count * piece.nbytes}"
            )
    if matrix.arrays[SCALES].dtype not in {"f32", "f16", "bf16"}:
        raise CorruptFile(f"{where}: its scales are {matrix.arrays[SCALES].dtype}")
