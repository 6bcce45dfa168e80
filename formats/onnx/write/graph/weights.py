"""The weights of a model as a graph uses them: multiplied, looked up, added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zenconvert.formats.onnx.codecs import CODES, SCALES, ZEROS, BlockCodec, NBitsCodec
from zenconvert.formats.onnx.write.graph.builder import CONTRIB, DTYPES, GraphBuilder
from zenconvert.formats.onnx.write.placing import Place, Stack, array_name
from zenconvert.model.encoding import Grouped
from zenconvert.model.grouped import OFFSETS
from zenconvert.model.layout import Choice

_F32 = int(DTYPES["f32"])
_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_SIGNED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class Weights:
    """Every tensor of a model, by neutral name, and where its bytes lie."""

    builder: GraphBuilder
    choices: Mapping[str, Choice]
    """Neutral name → the tensor's choice."""
    stacks: Mapping[str, tuple[Stack, Stack]]
    """Neutral name of a layer's experts → their weights, where one node computes them all."""
    places: Mapping[str, Place]
    """Name of an array in the graph → its place."""
    orders: Mapping[tuple[int, ...], str]
    """Order of columns → the array that holds it."""
    floats: str
    """Type of the activations."""
    standard: bool
    """Whether only operators of the standard may be used."""
    level: int
    """``accuracy_level`` of MatMulNBits and QMoE."""
    rounds: bool
    """Whether products with integers may round their activations."""

    def __contains__(self, name: str) -> bool:
        return name in self.choices

    def path(self, module: str) -> str:
        """What transformers calls a module, which is what its nodes are called after."""
        return self.choices[f"{module}.weight"].name.removesuffix(".weight")

    def around(self, module: str) -> str:
        """What transformers calls the module that a module is part of."""
        return self.path(module).rpartition(".")[0]

    def plain(self, name: str) -> ir.Value:
        """A dense tensor as it is stored."""
        return self._dense(self.choices[name])

    def _dense(self, choice: Choice) -> ir.Value:
        numbers = choice.encoding.dense
        assert numbers is not None
        return self._array(array_name(choice), DTYPES[numbers.dtype], choice.shape)

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

    def _pieces(self, choice: Choice) -> dict[str, ir.Value]:
        """The arrays of a grouped tensor as their operator wants them, by piece."""
        grid, codec, (rows, columns) = choice.encoding.grouped, choice.codec, choice.shape
        assert grid is not None
        blocks, found = grid.groups(columns), {}
        for piece in choice.pieces:
            dtype, shape = DTYPES[piece.dtype], piece.shape
            if isinstance(codec, BlockCodec):
                shape = (columns if piece.name == CODES else blocks, rows)
                if piece.name in {CODES, ZEROS}:
                    dtype = (_SIGNED if codec.is_signed(grid) else _UNSIGNED)[grid.bits]
            elif piece.name == CODES:
                shape = (rows, blocks, shape[1] // blocks)
            found[piece.name] = self._array(array_name(choice, piece.name), dtype, shape)
        return found

    def stacked(self, stack: Stack) -> list[ir.Value | None]:
        """Codes, scales and any zero points ``[experts, rows, …]``, as QMoE wants them."""
        found: dict[str, ir.Value] = {}
        for piece in stack.members[0].pieces:
            rows, width = piece.shape
            shape = (len(stack.members) // stack.abreast, stack.abreast * rows, width)
            name = f"{stack.name}.{piece.name}"
            found[piece.name] = self._array(name, DTYPES[piece.dtype], shape)
        return [found[CODES], found[SCALES], found.get(ZEROS)]

    def linear(self, module: str, x: ir.Value, *, rank: int = 3) -> ir.Value:
        """``x · Wᵀ + b`` of a module, for x ``[…, in]`` of ``rank`` dimensions."""
        choice = self.choices[f"{module}.weight"]
        with self.builder.inside(self.path(module)):
            if choice.columns is not None:
                x = self._gathered(x, choice.columns)
            if (grid := choice.encoding.grouped) is not None:
                y = self._grouped_product(choice, grid, x, rank)
            else:
                y = self._dense_product(choice, x)
            if (bias := f"{module}.bias") in self:
                y = self.builder.op("Add", y, self.plain(bias))
        return y

    def _gathered(self, x: ir.Value, columns: tuple[int, ...]) -> ir.Value:
        """Activations in the order of a weight's columns; modules that share both share this."""
        order = self.table(self.orders[columns], "i64", (len(columns),))
        return self.builder.shared("Gather", x, order, axis=-1)

    def _dense_product(self, choice: Choice, x: ir.Value) -> ir.Value:
        builder, weight = self.builder, self._dense(choice)
        if str(choice.encoding) != self.floats:
            weight = builder.cast(weight, self.floats)
        if choice.transposed:
            return builder.op("MatMul", x, weight)
        # [out, in]: the embedding uses it as well
        flat = builder.op("Reshape", x, builder.integers(-1, choice.shape[1]))
        product = builder.op("Gemm", flat, weight, transB=1)
        lead = builder.op("Shape", x, end=-1)
        shape = builder.op("Concat", lead, builder.integers(choice.shape[0]), axis=0)
        return builder.op("Reshape", product, shape)

    def _grouped_product(self, choice: Choice, grid: Grouped, x: ir.Value, rank: int) -> ir.Value:
        builder, (rows, columns), pieces = self.builder, choice.shape, self._pieces(choice)
        block = grid.group or columns
        arrays = [pieces[name] for name in (CODES, SCALES, ZEROS) if name in pieces]
        if isinstance(choice.codec, BlockCodec):
            weight = builder.op("DequantizeLinear", *arrays, axis=0, block_size=block)
            if not self.rounds:  # onnxruntime fuses a product with DequantizeLinear next to it
                weight = builder.op("Reshape", weight, builder.integers(columns, rows))
            y = builder.op("MatMul", x, weight)
        else:
            y = builder.op(
                "MatMulNBits",
                x,
                *arrays,
                domain=CONTRIB,
                K=columns,
                N=rows,
                bits=grid.bits,
                block_size=block,
                accuracy_level=self.level,
            )
        if grid.offset is None:
            return y
        factors = self._middles(choice, pieces)
        if not isinstance(choice.codec, BlockCodec):
            factors = builder.op("Transpose", factors, perm=[1, 0])
        return builder.op("Add", y, self._of_sums(x, factors, columns, block, rank))

    def _middles(self, choice: Choice, pieces: Mapping[str, ir.Value]) -> ir.Value:
        """``offset + middle · scale`` of every block, f32: what its middle code stands for."""
        builder, scales, codec = self.builder, pieces[SCALES], choice.codec
        assert isinstance(codec, NBitsCodec | BlockCodec)
        scales = scales if self.floats == "f32" else builder.shared("Cast", scales, to=_F32)
        middle = np.array(codec.middle, np.float32)
        shift = builder.shared("Mul", scales, builder.constant(f"middle.{codec.middle}", middle))
        return builder.shared("Add", pieces[OFFSETS], shift)

    def _of_sums(
        self, x: ir.Value, factors: ir.Value, columns: int, block: int, rank: int
    ) -> ir.Value:
        """Sums of activations over blocks, times factors; computed in f32."""
        builder, wide = self.builder, self.floats == "f32"
        x = x if wide else builder.shared("Cast", x, to=_F32)
        shape = builder.integers(*[0] * (rank - 1), columns // block, block)
        parts = builder.shared("Reshape", x, shape)
        sums = builder.shared("ReduceSum", parts, builder.integers(-1), keepdims=0)
        added = builder.op("MatMul", sums, factors)
        return added if wide else builder.cast(added, self.floats)

    def lookup(self, name: str, ids: ir.Value) -> ir.Value:
        """Rows of the embedding ``[batch, sequence, hidden]``, in the type of the activations."""
        choice = self.choices[name]
        with self.builder.inside(choice.name.removesuffix(".weight")):
            if (grid := choice.encoding.grouped) is not None:
                return self._grouped_lookup(choice, grid, ids)
            rows = self.builder.op("Gather", self.plain(name), ids)
            same = str(choice.encoding) == self.floats
            return rows if same else self.builder.cast(rows, self.floats)

    def _grouped_lookup(self, choice: Choice, grid: Grouped, ids: ir.Value) -> ir.Value:
        builder, pieces, block = self.builder, self._pieces(choice), grid.group or choice.shape[1]
        codes = builder.op("Reshape", pieces[CODES], builder.integers(0, -1))
        if self.standard:  # 8 bits: a byte for every column, which Gather can take
            arrays = (codes, pieces[SCALES], pieces[ZEROS])
            rows = [builder.op("Gather", array, ids) for array in arrays]
            found = builder.op("DequantizeLinear", *rows, axis=2, block_size=block)
        else:
            found = builder.op(
                "GatherBlockQuantized",
                codes,
                ids,
                pieces[SCALES],
                pieces[ZEROS],
                domain=CONTRIB,
                bits=grid.bits,
                block_size=block,
                gather_axis=0,
                quantize_axis=1,
            )
        if grid.offset is None:
            return found
        middles = builder.op("Gather", self._middles(choice, pieces), ids)
        middles = builder.op("Unsqueeze", middles, builder.integers(-1))
        middles = middles if self.floats == "f32" else builder.cast(middles, self.floats)
        parts = builder.op("Reshape", found, builder.integers(0, 0, -1, block))
        shifted = builder.op("Add", parts, middles)
        return builder.op("Reshape", shifted, builder.integers(0, 0, choice.shape[1]))
