"""The layouts against the operators of onnxruntime and ONNX that define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.onnx_runs import session
from zenconvert.formats.onnx import packing
from zenconvert.formats.onnx.codecs import CODES, SCALES, ZEROS, BlockCodec, NBitsCodec, block_of
from zenconvert.model.encoding import F16, F32, Grouped
from zenconvert.model.grouped import GroupedRows

KINDS = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


def made_up(bits: int, group: int | None, shape: tuple[int, int], *, zeros: bool) -> GroupedRows:
    """Random rows on a grid."""
    random = np.random.default_rng(bits + shape[1])
    groups = 1 if group is None else -(-shape[1] // group)
    scales = random.standard_normal((shape[0], groups)).astype(np.float16).astype(np.float32)
    points = random.integers(0, 1 << bits, scales.shape).astype(np.uint8) if zeros else None
    codes = random.integers(0, 1 << bits, shape).astype(np.uint8)
    return GroupedRows(bits, codes, scales, points, group)


def run(
    nodes: list[Any], inputs: dict[str, NDArray[Any]], tensors: list[Any], *, dims: int = 2
) -> NDArray[Any]:
    """The value "y" of a graph that is made of nodes and initializers."""
    infos = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in inputs.items()
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{i}" for i in range(dims)])
    graph = helper.make_graph(nodes, "test", infos, [out], tensors)
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=13)
    onnx.checker.check_model(model, full_check=True)
    found: NDArray[Any] = session(model.SerializeToString(), level=0).run(None, inputs)[0]
    return found


def raw(name: str, kind: int, shape: tuple[int, ...], data: NDArray[Any]) -> Any:
    """An initializer with these bytes."""
    return helper.make_tensor(name, kind, shape, np.ascontiguousarray(data).tobytes(), raw=True)


GRIDS = [
    (bits, group, columns, zeros)
    for bits in (2, 4, 8)
    for group, columns in ((32, 96), (64, 96), (16, 48), (128, 256), (None, 64))
    for zeros in (False, True)
]


@pytest.mark.parametrize(("bits", "group", "columns", "zeros"), GRIDS)
def test_matmulnbits_multiplies_with_the_packed_weights(
    bits: int, group: int | None, columns: int, zeros: bool
) -> None:
    rows = made_up(bits, group, (40, columns), zeros=zeros)
    arrays = NBitsCodec().pack(rows)
    blocks, block = rows.scales.shape[1], group or columns
    tensors = [
        raw("b", TensorProto.UINT8, (40, blocks, block * bits // 8), arrays[CODES]),
        raw("s", TensorProto.FLOAT, (40, blocks), arrays[SCALES]),
    ]
    if zeros:
        tensors.append(raw("z", TensorProto.UINT8, arrays[ZEROS].shape, arrays[ZEROS]))
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s", *(["z"] if zeros else [])],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=40,
        bits=bits,
        block_size=block,
        accuracy_level=0,
    )
    eye = np.eye(columns, dtype=np.float32)
    np.testing.assert_array_equal(run([node], {"x": eye}, tensors).T, rows.dequantize())


@pytest.mark.parametrize(("bits", "group", "columns", "zeros"), GRIDS)
def test_dequantizelinear_gives_the_packed_weights(
    bits: int, group: int | None, columns: int, zeros: bool
) -> None:
    rows = made_up(bits, group, (40, columns), zeros=zeros)
    arrays = BlockCodec().pack(rows)
    kind = KINDS[bits] if zeros else SIGNED[bits]
    groups = rows.scales.shape[1]
    tensors = [
        raw("q", kind, (columns, 40), arrays[CODES]),
        raw("s", TensorProto.FLOAT, (groups, 40), arrays[SCALES]),
    ]
    if zeros:
        tensors.append(raw("z", kind, (groups, 40), arrays[ZEROS]))
    names = [t.name for t in tensors]
    dequantize = helper.make_node(
        "DequantizeLinear", names, ["w"], axis=0, block_size=group or columns
    )
    nodes = [dequantize, helper.make_node("Identity", ["w"], ["y"])]
    np.testing.assert_array_equal(run(nodes, {}, tensors).T, rows.dequantize())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_gatherblockquantized_looks_up_the_packed_rows(bits: int, zeros: bool) -> None:
    rows = made_up(bits, 32, (50, 96), zeros=True)
    if not zeros:
        rows.zeros[:] = rows.midpoint  # type: ignore[index]
    arrays = NBitsCodec().pack(rows)
    tensors = [
        raw("d", TensorProto.UINT8, arrays[CODES].shape, arrays[CODES]),
        raw("s", TensorProto.FLOAT, arrays[SCALES].shape, arrays[SCALES]),
        raw("z", TensorProto.UINT8, arrays[ZEROS].shape, arrays[ZEROS]),
    ]
    node = helper.make_node(
        "GatherBlockQuantized",
        ["d", "ids", "s", "z"],
        ["y"],
        domain="com.microsoft",
        bits=bits,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
    )
    ids = np.array([[3, 49, 0], [7, 7, 1]], dtype=np.int64)
    found = run([node], {"ids": ids}, tensors, dims=3)
    np.testing.assert_array_equal(found, rows.dequantize()[ids])


@pytest.mark.parametrize(("bits", "group", "columns", "zeros"), GRIDS)
def test_what_was_packed_is_unpacked(
    bits: int, group: int | None, columns: int, zeros: bool
) -> None:
    rows = made_up(bits, group, (64, columns), zeros=zeros)
    for codec in (NBitsCodec(columns), BlockCodec()):
        encoding = Grouped(bits, group, not zeros, F32)
        arrays = codec.pack(rows)
        for piece in codec.pieces(encoding, (64, columns)):
            assert arrays[piece.name].nbytes == piece.nbytes
        found = codec.unpack(arrays, encoding)
        np.testing.assert_array_equal(found.codes, rows.codes)
        np.testing.assert_array_equal(found.dequantize(), rows.dequantize())


def test_bytes_hold_the_first_integer_lowest() -> None:
    values = np.array([[1, 2, 3, 0, 2]], dtype=np.uint8)
    assert packing.pack(values, 2).tolist() == [[0b00_11_10_01, 0b10]]
    assert packing.pack(values, 4).tolist() == [[0x21, 0x03, 0x02]]
    assert packing.pack(values, 8).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("group", "columns", "block"),
    [
        (96, 288, 32),
        (128, 4096, 128),
        (1024, 4096, 256),
        (None, 11008, 256),
        (None, 48, 16),
        (24, 96, None),
        (40, 80, None),
    ],
)
def test_groups_split_into_the_largest_blocks(
    group: int | None, columns: int, block: int | None
) -> None:
    assert block_of(group, columns) == block


@pytest.mark.parametrize(
    ("encoding", "shape", "reason"),
    [
        (Grouped(3, 32, True), (64, 64), "3 bits"),
        (Grouped(4, 48, True), (64, 96), "power of two"),
        (Grouped(4, None, True), (64, 96), "power of two"),
        (Grouped(4, 8, True), (64, 64), "power of two"),
        (Grouped(4, 32, True, F16, ordered=True), (64, 64), "order of their own"),
    ],
)
def test_grids_that_do_not_fit_are_refused(
    encoding: Grouped, shape: tuple[int, int], reason: str
) -> None:
    for codec in (NBitsCodec(), BlockCodec()):
        assert reason in (codec.refuses(encoding, shape) or "")
    assert "whole bytes" in (BlockCodec().refuses(Grouped(4, 32, True), (63, 64)) or "")
    assert NBitsCodec().refuses(Grouped(4, 32, True), (63, 64)) is None
