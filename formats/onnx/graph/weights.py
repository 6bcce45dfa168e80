"""The weights of a model as a graph uses them: multiplied, looked up, added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from zenconvert.encoding import Dense, Grouped
from zenconvert.formats.onnx.codecs import CODES, ZEROS, BlockCodec
from zenconvert.formats.onnx.graph.builder import CONTRIB, DTYPES, GraphBuilder
from zenconvert.formats.onnx.placing import Place, array_name
from zenconvert.layout import Choice

_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_SIGNED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class Weights:
    """Every tensor of a model, by neutral name, and where its bytes lie."""

    builder: GraphBuilder
    choices: Mapping[str, Choice]
    """Neutral name → the tensor's choice."""
    places: Mapping[str, Place]
    """Name of an array in the graph → its place."""
    orders: Mapping[tuple[int, ...], str]
    """Order of columns → the array that holds it."""
    floats: str
    """Type of the activations."""
    standard: bool
    """Whether only operators of the standard may be used."""
    level: int
    """``accuracy_level`` of MatMulNBits."""

    def __contains__(self, name: str) -> bool:
        return name in self.choices

    def plain(self, name: str) -> ir.Value:
        """A dense tensor as it is stored."""
        choice = self.choices[name]
        assert isinstance(choice.encoding, Dense)
        return self._array(choice.name, DTYPES[choice.encoding.dtype], choice.shape)

    def table(self, name: str, dtype: str, shape: tuple[int, ...]) -> ir.Value:
        """A derived tensor, by its own name."""
        return self._array(name, DTYPES[dtype], shape)

    def _array(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        place = self.places[name]
        return self.builder.external(
            ir.ExternalTensor(
                place.file, place.offset, place.nbytes, dtype, shape=ir.Shape(shape), name=name
            )
        )

    def linear(self, module: str, x: ir.Value) -> ir.Value:
        """``x · Wᵀ + b`` of a module, for x ``[…, in]``."""
        choice = self.choices[f"{module}.weight"]
        with self.builder.inside(choice.name.removesuffix(".weight")):
            if choice.columns is not None:
                x = self._gathered(x, choice.columns)
            y = self._product(choice, x)
            if (bias := f"{module}.bias") in self:
                y = self.builder.op("Add", y, self.plain(bias))
        return y

    def _gathered(self, x: ir.Value, columns: tuple[int, ...]) -> ir.Value:
        """Activations in the order of a weight's columns; modules that share both share this."""
        order = self.table(self.orders[columns], "i64", (len(columns),))
        for node in self.builder.nodes:
            if node.op_type == "Gather" and tuple(node.inputs) == (x, order):
                return node.outputs[0]
        return self.builder.op("Gather", x, order, axis=-1)

    def _product(self, choice: Choice, x: ir.Value) -> ir.Value:
        builder = self.builder
        if isinstance(choice.encoding, Dense):
            weight = self._array(array_name(choice), DTYPES[choice.encoding.dtype], choice.shape)
            if choice.encoding.dtype != self.floats:
                weight = builder.cast(weight, self.floats)
            if choice.transposed:
                return builder.op("MatMul", x, weight)
            return self._by_rows(x, weight, choice)
        if isinstance(choice.codec, BlockCodec):
            return builder.op("MatMul", x, self._dequantized(choice))
        arrays, (rows, columns) = self._packed(choice), choice.shape
        assert isinstance(choice.encoding, Grouped)
        return builder.op(
            "MatMulNBits",
            x,
            *arrays,
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=choice.encoding.bits,
            block_size=choice.encoding.group or columns,
            accuracy_level=self.level,
        )

    def _by_rows(self, x: ir.Value, weight: ir.Value, choice: Choice) -> ir.Value:
        """A product with a matrix ``[out, in]`` that the embedding uses as well."""
        builder = self.builder
        flat = builder.op("Reshape", x, builder.integers(-1, choice.shape[1]))
        product = builder.op("Gemm", flat, weight, transB=1)
        lead = builder.op("Shape", x, end=-1)
        shape = builder.op("Concat", lead, builder.integers(choice.shape[0]), axis=0)
        return builder.op("Reshape", product, shape)

    def _packed(self, choice: Choice) -> list[ir.Value]:
        """Codes ``[out, blocks, bytes]``, scales and any zero points of MatMulNBits."""
        rows, columns = choice.shape
        assert isinstance(choice.encoding, Grouped)
        blocks = choice.encoding.groups(columns)
        arrays = []
        for piece in choice.pieces:
            shape = piece.shape
            if piece.name == CODES:
                shape = (rows, blocks, shape[1] // blocks)
            arrays.append(self._array(array_name(choice, piece.name), DTYPES[piece.dtype], shape))
        return arrays

    def _dequantized(self, choice: Choice) -> ir.Value:
        """A matrix ``[in, out]`` out of DequantizeLinear."""
        encoding, codec = choice.encoding, choice.codec
        assert isinstance(encoding, Grouped)
        assert isinstance(codec, BlockCodec)
        rows, columns = choice.shape
        kinds = _SIGNED if codec.is_signed(encoding) else _UNSIGNED
        arrays = []
        for piece in choice.pieces:
            packed = piece.name in {CODES, ZEROS}
            dtype = kinds[encoding.bits] if packed else DTYPES[piece.dtype]
            shape = (columns if piece.name == CODES else encoding.groups(columns), rows)
            arrays.append(self._array(array_name(choice, piece.name), dtype, shape))
        block = encoding.group or columns
        return self.builder.op("DequantizeLinear", *arrays, axis=0, block_size=block)

    def lookup(self, name: str, ids: ir.Value) -> ir.Value:
        """Rows of the embedding, in the type of the activations."""
        choice = self.choices[name]
        with self.builder.inside(choice.name.removesuffix(".weight")):
            if isinstance(choice.encoding, Grouped):
                return self._quantized_lookup(choice, ids)
            rows = self.builder.op("Gather", self.plain(name), ids)
            same = str(choice.encoding) == self.floats
            return rows if same else self.builder.cast(rows, self.floats)

    def _quantized_lookup(self, choice: Choice, ids: ir.Value) -> ir.Value:
        encoding, builder = choice.encoding, self.builder
        assert isinstance(encoding, Grouped)
        block = encoding.group or choice.shape[1]
        codes, scales, zeros = self._packed(choice)
        flat = builder.op("Reshape", codes, builder.integers(0, -1))
        if self.standard:  # 8 bits: a byte for every column, which Gather can take
            rows = [builder.op("Gather", array, ids) for array in (flat, scales, zeros)]
            return builder.op("DequantizeLinear", *rows, axis=2, block_size=block)
        return builder.op(
            "GatherBlockQuantized",
            flat,
            ids,
            scales,
            zeros,
            domain=CONTRIB,
            bits=encoding.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
