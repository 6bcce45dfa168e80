"""Nodes → embeddings: the tables in which tokens are looked up."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from zenconvert.errors import Unsupported
from zenconvert.formats.onnx.codecs import BITS, CODES, SCALES, ZEROS, NBitsCodec
from zenconvert.formats.onnx.read import minimums
from zenconvert.formats.onnx.read.container import Initializer
from zenconvert.formats.onnx.read.graph_view import GraphView, attributes, inputs
from zenconvert.formats.onnx.read.matrices import (
    INTEGERS,
    Matrix,
    arrays_of,
    check_sizes,
    dense,
    with_minimums,
)
from zenconvert.model.encoding import Dense, Grouped

if TYPE_CHECKING:
    import onnx


def embedding(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """The table in which tokens are looked up; None for any other node."""
    if node.op_type == "GatherBlockQuantized":
        return _quantized_table(view, node)
    if node.op_type == "DequantizeLinear":
        return _looked_up_in_bytes(view, node)
    if node.op_type != "Gather" or not _takes_tokens(view, node.input[1]):
        return None
    if any(any(view.takers(node.output[0], part)) for part in ("DequantizeLinear", "Unsqueeze")):
        return None  # scales and minimums of a quantized table
    value = node.input[0]
    turned = view.producer(value, "Transpose")
    if turned is not None:
        return dense(view.initializer(turned.input[0]), transposed=True)
    return dense(view.initializer(value), transposed=False)


def _takes_tokens(view: GraphView, value: str) -> bool:
    """True for the token ids, also by way of a Cast or a Reshape."""
    for _ in range(4):
        if any(value == i.name for i in view.file.model.graph.input):
            return value == "input_ids"
        node = view.producer(value, "Cast", "Reshape", "Identity")
        if node is None:
            return False
        value = node.input[0]
    return False


def _stored(view: GraphView, value: str) -> str:
    """The value before any Reshape."""
    node = view.producer(value, "Reshape")
    return node.input[0] if node is not None else value


def _quantized_table(view: GraphView, node: onnx.NodeProto) -> Matrix:
    given, where = attributes(node), f"{view.file.path}: node {node.name!r} (GatherBlockQuantized)"
    data, _, scales, zeros = inputs(node, 4)
    pieces = {CODES: _stored(view, data), SCALES: scales, ZEROS: zeros}
    arrays = arrays_of(view, where, pieces)
    dtype, block = arrays[CODES].dtype, given.get("block_size", 128)
    bits = given.get("bits", 4) if dtype == "u8" else INTEGERS.get(dtype, 0)
    axes = (given.get("gather_axis", 0), given.get("quantize_axis", 1))
    if (
        bits not in BITS
        or block < 1
        or axes not in {(0, 1), (0, -1)}
        or len(arrays[SCALES].shape) != 2
    ):
        raise Unsupported(
            f"{where}: {dtype} of {bits} bits in blocks of {block}, axes {axes}, are not read"
        )
    signed = dtype.startswith("i")
    if ZEROS not in arrays and dtype.startswith("u") and dtype != "u8":
        raise Unsupported(f"{where}: unsigned codes without zero points are not read")
    rows, width = arrays[CODES].shape[0], arrays[CODES].nbytes // max(1, arrays[CODES].shape[0])
    columns = width * 8 // bits
    group = None if block >= columns else block
    grid = Grouped(bits, group, ZEROS not in arrays, Dense(arrays[SCALES].dtype))
    return _table(view, node, (rows, columns), arrays, grid, signed=signed)


def _table(
    view: GraphView,
    node: onnx.NodeProto,
    shape: tuple[int, int],
    arrays: dict[str, Initializer],
    grid: Grouped,
    *,
    signed: bool = False,
) -> Matrix:
    """An embedding on a grid, with any minimums."""
    found = minimums.of_lookup(view, node)
    arrays, offset = with_minimums(arrays, found)
    codec = NBitsCodec(shape[1], signed=signed)
    if found is not None:
        grid = replace(grid, symmetric=False, offset=offset)
        codec = NBitsCodec(shape[1], middle=found.middle, explicit=True)
    matrix = Matrix(shape, arrays, grid, codec)
    check_sizes(matrix, f"{view.file.path}: node {node.name!r} ({node.op_type})")
    return matrix


def _looked_up_in_bytes(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """A table of bytes that Gather reads and DequantizeLinear turns into numbers."""
    gathers = [view.producer(value, "Gather") for value in inputs(node, 3)]
    if any(g is None or not _takes_tokens(view, g.input[1]) for g in gathers):
        return None
    where = f"{view.file.path}: node {node.name!r} (DequantizeLinear)"
    values = [_stored(view, g.input[0]) for g in gathers if g is not None]
    arrays = arrays_of(view, where, dict(zip((CODES, SCALES, ZEROS), values, strict=True)))
    rows, columns = arrays[CODES].shape[0], prod(arrays[CODES].shape[1:])
    block = attributes(node).get("block_size", 0)
    if arrays[CODES].dtype != "u8" or block < 1:
        raise Unsupported(f"{where}: an embedding of {arrays[CODES].dtype} is not read")
    grid = Grouped(8, None if block >= columns else block, False, Dense(arrays[SCALES].dtype))
    return _table(view, node, (rows, columns), arrays, grid)
