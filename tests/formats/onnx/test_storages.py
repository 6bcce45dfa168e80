"""Every way in which a graph may store a matrix means what onnxruntime computes with it.

A storage is a class: it puts other nodes and numbers in the place of the products, or of the
lookup, of a graph of floats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.onnx_runs import decoded_logits, onnx_logits, session, tokens, variant
from zenconvert import convert, open_checkpoint

BLOCK = 32
CONTRIB = "com.microsoft"
Part = tuple[list[NodeProto], dict[str, NDArray[Any]]]
"""Nodes, and the arrays that they take."""


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph of floats, one layer deep."""
    place = tmp_path_factory.mktemp("floats")
    source = variant(place / "source", "qwen2", num_hidden_layers=1)
    convert(source, place / "out", "onnx:f32")
    return place / "out"


class StorageTests:
    """What holds for every storage."""

    encoding: ClassVar[str]
    """What the matrices are read as."""
    looked_up = False
    """It is one of the embedding, and not of products."""

    def stored(self, name: str, x: str, y: str, rows: int, columns: int) -> Part:
        """A product ``y = x · Wᵀ`` with random W ``[rows, columns]``, or a lookup in W."""
        raise NotImplementedError

    def rewritten(self, model: onnx.ModelProto) -> list[str]:
        """Replace every product of a projection, or the lookup; the names of the matrices."""
        graph, names, nodes = model.graph, list[str](), list[NodeProto]()
        arrays = {array.name: array for array in graph.initializer}
        for node in graph.node:
            place = 0 if self.looked_up else 1
            own = "embed_tokens" if self.looked_up else "_proj"
            wanted = "Gather" if self.looked_up else "MatMul"
            if node.op_type != wanted or own not in node.input[place]:
                nodes.append(node)
                continue
            weight = arrays[node.input[place]]
            rows, columns = weight.dims if self.looked_up else weight.dims[::-1]
            name = weight.name.removesuffix("_t").removesuffix(".weight")
            names.append(name)
            fresh, found = self.stored(name, node.input[1 - place], node.output[0], rows, columns)
            nodes += fresh
            graph.initializer.remove(weight)
            graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in found.items())
        del graph.node[:]
        graph.node.extend(nodes)
        return names

    def test_it_means_what_onnxruntime_computes(self, floats: Path, tmp_path: Path) -> None:
        model = onnx.load(str(floats / "model.onnx"))
        names = self.rewritten(model)
        assert len(names) == (1 if self.looked_up else 7)
        if not any(one.domain == CONTRIB for one in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        out = tmp_path / "out"
        out.mkdir()
        (out / "config.json").write_bytes((floats / "config.json").read_bytes())
        onnx.save(model, str(out / "model.onnx"))
        tensors = open_checkpoint(out).tensors
        here = "embed.weight" if self.looked_up else "layers.0.ffn.down.weight"
        assert str(tensors[here].encoding) == self.encoding
        found = onnx_logits(session(out / "model.onnx", level=0), tokens())
        expected = decoded_logits(out, tmp_path / "hf", tokens())
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def numbers(name: str, bits: int, *, signed: bool, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """Random codes, the same for the same name."""
    first = -(1 << (bits - 1)) if signed else 0
    random = np.random.default_rng(sum(name.encode()))
    return random.integers(first, first + (1 << bits), shape).astype(np.int16)


def scales(name: str, bits: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    random = np.random.default_rng(len(name))
    return ((random.random(shape) + 0.5) * 0.2 / (1 << bits)).astype(np.float32)


class Integers(StorageTests):
    """DequantizeLinear before a product."""

    dtype: ClassVar[Any]
    bits: ClassVar[int]
    zeros = False
    turned = False
    """``[out, in]``, which the graph transposes."""
    whole = False
    """One scale for every output."""

    def stored(self, name: str, x: str, y: str, rows: int, columns: int) -> Part:
        signed = np.dtype(self.dtype).name.startswith("int")
        shape = (rows, columns) if self.turned else (columns, rows)
        blocks = (rows, columns // BLOCK) if self.turned else (columns // BLOCK, rows)
        groups: tuple[int, ...] = (rows,) if self.whole else blocks
        codes = numbers(name, self.bits, signed=signed, shape=shape).astype(self.dtype)
        found = {f"{name}.codes": codes, f"{name}.scales": scales(name, self.bits, groups)}
        if self.zeros:
            middle = 0 if signed else 1 << (self.bits - 1)
            zeros = middle + numbers(name, 2, signed=True, shape=groups)
            found[f"{name}.zeros"] = zeros.astype(self.dtype)
        axis: dict[str, Any] = {"axis": 1 if self.turned or self.whole else 0}
        axis |= {} if self.whole else {"block_size": BLOCK}
        weight = f"{name}.numbers"
        nodes = [helper.make_node("DequantizeLinear", list(found), [weight], f"{name}/dq", **axis)]
        if self.turned:
            nodes.append(helper.make_node("Transpose", [weight], [f"{weight}.t"], perm=[1, 0]))
            weight += ".t"
        return [*nodes, helper.make_node("MatMul", [x, weight], [y], f"{name}/MatMul")], found


class TestColumnsOfInt4(Integers):
    dtype, bits, encoding = ml_dtypes.int4, 4, "w4g32"


class TestColumnsOfUint4WithZeros(Integers):
    dtype, bits, zeros, encoding = ml_dtypes.uint4, 4, True, "w4g32-asym"


class TestColumnsOfInt8WithZeros(Integers):
    dtype, bits, zeros, encoding = np.int8, 8, True, "w8g32-asym"


class TestRowsOfInt4(Integers):
    dtype, bits, turned, encoding = ml_dtypes.int4, 4, True, "w4g32"


class TestRowsOfInt4WithZeros(Integers):
    dtype, bits, zeros, turned, encoding = ml_dtypes.int4, 4, True, True, "w4g32-asym"


class TestRowsOfUint4WithZeros(Integers):
    dtype, bits, zeros, turned, encoding = ml_dtypes.uint4, 4, True, True, "w4g32-asym"


class TestRowsOfInt8(Integers):
    dtype, bits, turned, encoding = np.int8, 8, True, "w8g32"


class TestRowsOfUint8WithZeros(Integers):
    dtype, bits, zeros, turned, encoding = np.uint8, 8, True, True, "w8g32-asym"


class TestOneScaleForEveryOutput(Integers):
    dtype, bits, whole, encoding = np.int8, 8, True, "w8g-1"


class TestOneScaleAndZeroForEveryOutput(Integers):
    dtype, bits, whole, zeros, encoding = np.uint8, 8, True, True, "w8g-1-asym"


class TestTurnedFloats(StorageTests):
    encoding = "f32"

    def stored(self, name: str, x: str, y: str, rows: int, columns: int) -> Part:
        weight = scales(name, 1, (rows, columns)) - np.float32(0.1)
        found: dict[str, NDArray[Any]] = {f"{name}.weight": weight}
        turned = helper.make_node("Transpose", list(found), [f"{name}.t"], perm=[1, 0])
        return [turned, helper.make_node("MatMul", [x, f"{name}.t"], [y], f"{name}/MatMul")], found


class NBits(StorageTests):
    """MatMulNBits, as other exporters fill it."""

    zeros = False
    index = False
    encoding = "w4g32"

    def stored(self, name: str, x: str, y: str, rows: int, columns: int) -> Part:
        groups = columns // BLOCK
        codes = numbers(name, 8, signed=False, shape=(rows, groups, BLOCK // 2)).astype(np.uint8)
        found: dict[str, NDArray[Any]] = {f"{name}.codes": codes}
        found[f"{name}.scales"] = scales(name, 4, (rows, groups))
        inputs = [x, *found]
        if self.zeros:
            zeros = numbers(name, 8, signed=False, shape=(rows, -(-groups // 2))).astype(np.uint8)
            found[f"{name}.zeros"] = zeros
            inputs.append(f"{name}.zeros")
        if self.index:
            order = np.random.default_rng(columns).permutation(columns)
            found[f"{name}.g_idx"] = (order // BLOCK).astype(np.int32)
            inputs += ["", f"{name}.g_idx"]
        node = helper.make_node(
            "MatMulNBits", inputs, [y], f"{name}/MatMulNBits", domain=CONTRIB,
            K=columns, N=rows, bits=4, block_size=BLOCK, accuracy_level=0,
        )  # fmt: skip
        return [node], found


class TestNBits(NBits):
    pass


class TestNBitsWithZeros(NBits):
    zeros, encoding = True, "w4g32-asym"


class TestNBitsWithAnIndex(NBits):
    index, encoding = True, "w4g32-actorder"


class Lookups(StorageTests):
    """GatherBlockQuantized, as other exporters fill it."""

    looked_up = True
    dtype: ClassVar[Any]
    zeros = False
    encoding = "w4g32-asym"

    def stored(self, name: str, x: str, y: str, rows: int, columns: int) -> Part:
        packed, signed = self.dtype is np.uint8, self.dtype is ml_dtypes.int4
        bits, items = (8, 2) if packed else (4, 1)  # a byte holds two codes
        codes = numbers(name, bits, signed=signed, shape=(rows, columns // items))
        groups = (rows, columns // BLOCK)
        found = {f"{name}.codes": codes.astype(self.dtype)}
        found[f"{name}.scales"] = scales(name, 1, groups)
        inputs = [f"{name}.codes", x, f"{name}.scales"]
        if self.zeros:
            zeros = numbers(f"{name}0", bits, signed=signed, shape=(rows, groups[1] // items))
            found[f"{name}.zeros"] = zeros.astype(self.dtype)
            inputs.append(f"{name}.zeros")
        bits_of: dict[str, Any] = {"bits": 4} if packed else {}
        node = helper.make_node(
            "GatherBlockQuantized", inputs, [y], f"{name}/Gather", domain=CONTRIB,
            block_size=BLOCK, gather_axis=0, quantize_axis=1, **bits_of,
        )  # fmt: skip
        return [node], found


class TestLookupsInBytes(Lookups):
    dtype, encoding = np.uint8, "w4g32"


class TestLookupsInBytesWithZeros(Lookups):
    dtype, zeros = np.uint8, True


class TestLookupsInInt4(Lookups):
    dtype, encoding = ml_dtypes.int4, "w4g32"


class TestLookupsInInt4WithZeros(Lookups):
    dtype, zeros = ml_dtypes.int4, True


class TestLookupsInUint4WithZeros(Lookups):
    dtype, zeros = ml_dtypes.uint4, True


def test_types_are_those_of_the_standard() -> None:
    """The arrays of these tests are stored as onnx has them."""
    array = numpy_helper.from_array(np.arange(8).astype(ml_dtypes.uint4), "x")
    assert array.data_type == TensorProto.UINT4
    assert array.raw_data == bytes([0x10, 0x32, 0x54, 0x76])
