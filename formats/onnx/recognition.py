"""Nodes → weights: which matrix a product multiplies with, and how its numbers are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zenconvert.encoding import Dense, Grouped
from zenconvert.errors import CorruptFile, Unsupported
from zenconvert.formats.onnx.codecs import BITS, CODES, SCALES, ZEROS, BlockCodec, NBitsCodec
from zenconvert.formats.onnx.container import Initializer
from zenconvert.formats.onnx.graph_view import GraphView, attributes, inputs, scopes
from zenconvert.grouped import GroupedCodec

if TYPE_CHECKING:
    import onnx

_FLOATS: Final = frozenset({"f32", "f16", "bf16", "f64"})
_INTEGERS: Final = {"u4": 4, "i4": 4, "u2": 2, "i2": 2, "u8": 8, "i8": 8}


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


@dataclass(frozen=True)
class Found:
    """A matrix or vector and every name that may tell what it is."""

    texts: tuple[str, ...]
    matrix: Matrix | None = None
    vector: Initializer | None = None
    role: str = "linear"
    """``linear``, ``embed``, ``norm`` or ``bias``."""
    node: Any = field(default=None, repr=False)


def recognise(view: GraphView) -> Iterator[Found]:
    """Every matrix, embedding, norm and bias that the nodes of a graph use."""
    for node in view.nodes:
        if (matrix := _linear(view, node)) is not None:
            texts = _texts(node, matrix)
            yield Found(texts, matrix, node=node)
            if (bias := _bias(view, node, matrix)) is not None:
                yield Found((*texts, bias.name), vector=bias, role="bias", node=node)
        elif (table := _embedding(view, node)) is not None:
            yield Found(_texts(node, table), table, role="embed", node=node)
        elif (gamma := _gamma(view, node)) is not None:
            texts = (gamma.name, node.name, *scopes(node))
            yield Found(texts, vector=gamma, role="norm", node=node)


def _texts(node: onnx.NodeProto, matrix: Matrix) -> tuple[str, ...]:
    first = next(iter(matrix.arrays.values()))
    return (first.name, node.name, *scopes(node))


def _linear(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """The matrix of a product with activations; None for any other node."""
    if node.op_type == "MatMulNBits":
        return _nbits(view, node)
    if node.op_type == "MatMul" and len(node.input) == 2:
        weight = node.input[1]
        if (found := view.producer(weight, "DequantizeLinear")) is not None:
            return _dequantized(view, found, node.input[0])
        return _dense(view.initializer(weight), transposed=True) or _turned(view, weight)
    if node.op_type == "Gemm":
        given = attributes(node)
        plain = given.get("alpha", 1.0) == 1.0 and not given.get("transA", 0)
        weight = view.initializer(inputs(node, 2)[1])
        return _dense(weight, transposed=not given.get("transB", 0)) if plain else None
    return None


def _dense(array: Initializer | None, *, transposed: bool) -> Matrix | None:
    if array is None or len(array.shape) != 2 or array.dtype not in _FLOATS:
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
    return _dense(view.initializer(source), transposed=False)


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
    arrays = _arrays(view, where, {CODES: codes, SCALES: scales, ZEROS: zeros})
    if ZEROS in arrays and arrays[ZEROS].dtype != "u8":
        raise Unsupported(f"{where}: zero points of type {arrays[ZEROS].dtype} are not read")
    if arrays[CODES].dtype != "u8":
        raise CorruptFile(f"{where}: codes of type {arrays[CODES].dtype}; they should be u8")
    order = _order(view, node.input[0], columns, where)
    groups = _index(view, index, columns, block, where)
    grid = Grouped(
        bits,
        None if block >= columns else block,
        ZEROS not in arrays,
        Dense(arrays[SCALES].dtype),
        order is not None or groups is not None,
    )
    codec = NBitsCodec(columns, block if block > columns else None, order, groups)
    matrix = Matrix((rows, columns), arrays, grid, codec)
    _check_sizes(matrix, where)
    return matrix


def _arrays(view: GraphView, where: str, values: Mapping[str, str]) -> dict[str, Initializer]:
    found = {}
    for piece, value in values.items():
        if not value:
            continue
        array = view.file.initializers.get(value)
        if array is None:
            raise Unsupported(f"{where}: its {piece} {value!r} are computed, and not stored")
        found[piece] = array
    return found


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
    array = _arrays(view, where, {"g_idx": value})["g_idx"]
    groups = -(-columns // block)
    if array.dtype != "i32" or len(array.shape) != 1 or array.shape[0] < columns:
        raise CorruptFile(f"{where}: g_idx should be i32[{columns}], found {array.shape}")
    index = np.frombuffer(array.read(), dtype=np.int32)[:columns]
    if index.min() < 0 or index.max() >= groups:
        raise CorruptFile(f"{where}: g_idx names groups {index.min()} to {index.max()}")
    return tuple(index.tolist())


def _dequantized(view: GraphView, node: onnx.NodeProto, x: str) -> Matrix:
    """``[in, out]`` in blocks along axis 0, or one scale for every output; ``x`` goes into it."""
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
    order, scale = _order(view, x, columns, where), Dense(arrays[SCALES].dtype)
    grid = Grouped(bits, group, ZEROS not in arrays, scale, ordered=order is not None)
    codec = BlockCodec(signed=signed, order=order)
    matrix = Matrix((rows, columns), arrays, grid, codec)
    _check_sizes(matrix, where)
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
    _check_sizes(matrix, where)
    return matrix


def _integers(
    view: GraphView, node: onnx.NodeProto, where: str
) -> tuple[dict[str, Initializer], int, bool]:
    """The arrays of a DequantizeLinear, the bits of its codes, and whether they are signed."""
    codes, scales, zeros = inputs(node, 3)
    arrays = _arrays(view, where, {CODES: codes, SCALES: scales, ZEROS: zeros})
    dtype = arrays[CODES].dtype
    if dtype not in _INTEGERS or len(arrays[CODES].shape) != 2:
        raise Unsupported(f"{where}: weights of type {dtype} {arrays[CODES].shape} are not read")
    signed = dtype.startswith("i")
    if ZEROS in arrays and arrays[ZEROS].dtype != dtype:
        raise CorruptFile(f"{where}: its zero points are {arrays[ZEROS].dtype}, its codes {dtype}")
    if ZEROS not in arrays and not signed:
        raise Unsupported(f"{where}: unsigned codes without zero points are not read")
    return arrays, _INTEGERS[dtype], signed


def _check_sizes(matrix: Matrix, where: str) -> None:
    """Raise CorruptFile where an array has not the size that the node calls for."""
    assert isinstance(matrix.encoding, Grouped)
    assert matrix.codec is not None
    for piece in matrix.codec.pieces(matrix.encoding, matrix.shape):
        array = matrix.arrays[piece.name]
        if array.nbytes != piece.nbytes:
            raise CorruptFile(
                f"{where}: {array.name!r} has {array.nbytes} bytes; a matrix {list(matrix.shape)} "
                f"of {matrix.encoding} calls for {piece.nbytes}"
            )
    if matrix.arrays[SCALES].dtype not in {"f32", "f16", "bf16"}:
        raise CorruptFile(f"{where}: its scales are {matrix.arrays[SCALES].dtype}")


def _bias(view: GraphView, node: onnx.NodeProto, matrix: Matrix) -> Initializer | None:
    """What is added to a product."""
    own = {"MatMulNBits": 5, "Gemm": 2}.get(node.op_type)
    values = [inputs(node, own + 1)[own]] if own is not None else []
    for add in view.takers(node.output[0], "Add"):
        values += [value for value in add.input if value != node.output[0]]
    for value in values:
        array = view.initializer(value) if value else None
        if array is not None and array.shape == matrix.shape[:1]:
            return array
    return None


def _embedding(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """The table in which tokens are looked up; None for any other node."""
    if node.op_type == "GatherBlockQuantized":
        return _quantized_table(view, node)
    if node.op_type == "DequantizeLinear":
        return _looked_up_in_bytes(view, node)
    if node.op_type != "Gather" or not _takes_tokens(view, node.input[1]):
        return None
    if any(view.takers(node.output[0], "DequantizeLinear")):
        return None  # scales of a quantized table
    value = node.input[0]
    turned = view.producer(value, "Transpose")
    if turned is not None:
        return _dense(view.initializer(turned.input[0]), transposed=True)
    return _dense(view.initializer(value), transposed=False)


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
    arrays = _arrays(view, where, pieces)
    dtype, block = arrays[CODES].dtype, given.get("block_size", 128)
    bits = given.get("bits", 4) if dtype == "u8" else _INTEGERS.get(dtype, 0)
    axes = (given.get("gather_axis", 0), given.get("quantize_axis", 1))
    if bits not in BITS or axes not in {(0, 1), (0, -1)} or len(arrays[SCALES].shape) != 2:
        raise Unsupported(f"{where}: {dtype} of {bits} bits along axes {axes} are not read")
    signed = dtype.startswith("i")
    if ZEROS not in arrays and dtype.startswith("u") and dtype != "u8":
        raise Unsupported(f"{where}: unsigned codes without zero points are not read")
    rows, width = arrays[CODES].shape[0], arrays[CODES].nbytes // max(1, arrays[CODES].shape[0])
    columns = width * 8 // bits
    group = None if block >= columns else block
    grid = Grouped(bits, group, ZEROS not in arrays, Dense(arrays[SCALES].dtype))
    matrix = Matrix((rows, columns), arrays, grid, NBitsCodec(columns, signed=signed))
    _check_sizes(matrix, where)
    return matrix


def _looked_up_in_bytes(view: GraphView, node: onnx.NodeProto) -> Matrix | None:
    """A table of bytes that Gather reads and DequantizeLinear turns into numbers."""
    gathers = [view.producer(value, "Gather") for value in inputs(node, 3)]
    if any(g is None or not _takes_tokens(view, g.input[1]) for g in gathers):
        return None
    where = f"{view.file.path}: node {node.name!r} (DequantizeLinear)"
    values = [_stored(view, g.input[0]) for g in gathers if g is not None]
    arrays = _arrays(view, where, dict(zip((CODES, SCALES, ZEROS), values, strict=True)))
    rows, columns = arrays[CODES].shape[0], prod(arrays[CODES].shape[1:])
    block = attributes(node).get("block_size", 0)
    if arrays[CODES].dtype != "u8" or block < 1:
        raise Unsupported(f"{where}: an embedding of {arrays[CODES].dtype} is not read")
    grid = Grouped(8, None if block >= columns else block, False, Dense(arrays[SCALES].dtype))
    matrix = Matrix((rows, columns), arrays, grid, NBitsCodec(columns))
    _check_sizes(matrix, where)
    return matrix


def _gamma(view: GraphView, node: onnx.NodeProto) -> Initializer | None:
    """The weight of a norm; None for any other node."""
    fused = {
        "SimplifiedLayerNormalization": 1,
        "RMSNormalization": 1,
        "SkipSimplifiedLayerNormalization": 2,
    }
    if (place := fused.get(node.op_type)) is not None:
        return view.initializer(inputs(node, place + 1)[place])
    if node.op_type != "Mul":
        return None
    found = [a for value in node.input if (a := view.initializer(value)) is not None]
    return found[0] if found and len(found[0].shape) == 1 and found[0].dtype in _FLOATS else None
