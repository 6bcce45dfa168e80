"""Nodes, constants and external weights of one graph in the making."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""

DTYPES = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "i64": ir.DataType.INT64,
    "i32": ir.DataType.INT32,
    "i8": ir.DataType.INT8,
    "u8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}
"""Our names of element types → those of ONNX."""

Shape = Sequence[int | str | None]


class GraphBuilder:
    """Collects what a graph is made of. Names follow the module that is being built."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}
        self.module = ""
        self._used: Counter[str] = Counter()
        self._made: dict[tuple[Any, ...], ir.Value] = {}

    @contextmanager
    def inside(self, module: str) -> Iterator[None]:
        """Nodes made in the block carry the name of a module, e.g. ``model.layers.0.mlp``."""
        outer, self.module = self.module, module
        try:
            yield
        finally:
            self.module = outer

    def _name(self, op_type: str) -> str:
        # model.layers.0.mlp → /model/layers.0/mlp/Mul
        base = "/".join(["", *re.split(r"\.(?!\d)", self.module), op_type])
        self._used[base] += 1
        return base if self._used[base] == 1 else f"{base}_{self._used[base] - 1}"

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[bool],
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        """A node of several outputs; those marked False are left out. Returns the others."""
        name = self._name(op_type)
        values = [
            ir.Value(name=f"{name}_output_{i}" if wanted else "")
            for i, wanted in enumerate(outputs)
        ]
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name)
        self.nodes.append(node)
        return [value for value, wanted in zip(values, outputs, strict=True) if wanted]

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """A node of one output."""
        return self.ops(op_type, inputs, [True], domain, **attributes)[0]

    def either(
        self, condition: ir.Value, yes: Sequence[ir.Value], no: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """One or the other values of as many types, by a bool."""
        then, other = (self._branch(values, taken) for values, taken in ((yes, 1), (no, 0)))
        wanted = [True] * len(yes)
        return self.ops("If", [condition], wanted, then_branch=then, else_branch=other)

    def _branch(self, values: Sequence[ir.Value], taken: int) -> ir.Graph:
        """A graph that gives values of the one around it."""
        names = [f"{value.name}_branch_{taken}" for value in values]
        given = [ir.Value(name=n, type=v.type) for n, v in zip(names, values, strict=True)]
        nodes = [
            ir.node("Identity", [value], outputs=[out], name=self._name("Identity"))
            for value, out in zip(values, given, strict=True)
        ]
        return ir.Graph([], given, nodes=nodes, name=self._name(f"branch_{taken}"))

    def shared(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """A node of one output, made once for the same inputs and attributes."""
        key = (op_type, *map(id, inputs), *sorted(attributes.items()))
        if key not in self._made:
            self._made[key] = self.op(op_type, *inputs, **attributes)
        return self._made[key]

    def constant(self, name: str, value: NDArray[Any]) -> ir.Value:
        """A small tensor inside the graph, made once for every name."""
        if name not in self.initializers:
            tensor = ir.tensor(value, name=name)
            self._add(name, tensor)
        return self.initializers[name]

    def integers(self, *values: int) -> ir.Value:
        """A constant int64[n]."""
        return self.constant("const.i64." + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> ir.Value:
        """A constant int64 scalar."""
        return self.constant(f"const.i64.scalar.{value}", np.array(value, np.int64))

    def external(self, tensor: ir.ExternalTensor) -> ir.Value:
        """A tensor whose bytes lie in another file, made once for every name."""
        assert tensor.name is not None
        if tensor.name not in self.initializers:
            self._add(tensor.name, tensor)
        return self.initializers[tensor.name]

    def _add(self, name: str, tensor: ir.TensorProtocol) -> None:
        self.initializers[name] = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )

    def input(self, name: str, dtype: str, shape: Shape) -> ir.Value:
        """An input of the graph."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(DTYPES[dtype]))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: Shape) -> None:
        """Make a value an output of the graph, under a name of its own."""
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(DTYPES[dtype])
        self.outputs.append(value)

    def cast(self, value: ir.Value, dtype: str) -> ir.Value:
        """A value in another element type."""
        return self.op("Cast", value, to=int(DTYPES[dtype]))

    def graph(self, name: str, opsets: dict[str, int]) -> ir.Graph:
        """The finished graph."""
        return ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=opsets,
            name=name,
        )
