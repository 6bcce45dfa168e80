"""Sixteen float32 as one Numba value: the SIMD register that the K-quant searches are written in.

The searches of libggml add up float32 in strict order, which leaves a compiler nothing to vectorise
within one sub-block. Here every lane is another sub-block: each lane performs C's operations in C's
order, and sixteen of them run side by side. LLVM maps the values to one AVX-512 register, two of
AVX2, four of SSE or NEON; no operation is reordered or fused.

``Floats``, ``Ints`` (int32) and ``Mask`` exist only inside compiled code. Operators take two values
of a kind, or one and a float32 (int32) that stands for sixteen equal ones. A float64 operand is a
typing error, so no promotion slips in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable
from numpy.typing import NDArray

from zenconvert.base.compiling import njit

Floats: TypeAlias = Any
Ints: TypeAlias = Any
Mask: TypeAlias = Any

LANES: Final = 16
_CACHE_LINE: Final = 64
_ELEMENTS: Final = {
    "Floats": ir.FloatType(),
    "Ints": ir.IntType(32),
    "Mask": ir.IntType(1),
}


class _Vector(types.Type):  # type: ignore[misc]  # numba is untyped
    """Numba's type of sixteen numbers of one kind."""


class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_ELEMENTS[vector.name], LANES))


register_model(_Vector)(_VectorModel)
_FLOATS: Final = _Vector("Floats")
_INTS: Final = _Vector("Ints")
_MASK: Final = _Vector("Mask")
_SCALARS: Final = {_FLOATS: types.float32, _INTS: types.int32}


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, zeros)


def _operator(
    function: Callable[..., Any], operand: _Vector, result: _Vector, emit: Callable[..., Any]
) -> None:
    """Give a Python operator a meaning for two vectors, and for a vector and its scalar."""
    kinds = (operand, _SCALARS.get(operand, operand))

    @type_callable(function)
    def _(_context: Any) -> Callable[[Any, Any], Any]:
        def typer(a: Any, b: Any) -> Any:
            return result if operand in (a, b) and a in kinds and b in kinds else None

        return typer

    def lower(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b = (
            value if kind == operand else _splat(builder, value)
            for value, kind in zip(arguments, signature.args, strict=True)
        )
        return emit(builder, a, b)

    for a, b in {(operand, operand), (operand, kinds[1]), (kinds[1], operand)}:
        lower_builtin(function, a, b)(lower)


def _compare_floats(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


def _compare_ints(sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.icmp_signed(sign, a, b)


_operator(operator.add, _FLOATS, _FLOATS, ir.IRBuilder.fadd)
_operator(operator.sub, _FLOATS, _FLOATS, ir.IRBuilder.fsub)
_operator(operator.mul, _FLOATS, _FLOATS, ir.IRBuilder.fmul)
_operator(operator.truediv, _FLOATS, _FLOATS, ir.IRBuilder.fdiv)
_operator(operator.gt, _FLOATS, _MASK, _compare_floats(">"))
_operator(operator.lt, _FLOATS, _MASK, _compare_floats("<"))
_operator(operator.eq, _FLOATS, _MASK, _compare_floats("=="))
_operator(operator.ne, _FLOATS, _MASK, lambda builder, a, b: builder.fcmp_unordered("!=", a, b))
_operator(operator.and_, _MASK, _MASK, ir.IRBuilder.and_)
_operator(operator.or_, _MASK, _MASK, ir.IRBuilder.or_)
_operator(operator.add, _INTS, _INTS, ir.IRBuilder.add)
_operator(operator.sub, _INTS, _INTS, ir.IRBuilder.sub)
_operator(operator.and_, _INTS, _INTS, ir.IRBuilder.and_)
_operator(operator.or_, _INTS, _INTS, ir.IRBuilder.or_)
_operator(operator.lshift, _INTS, _INTS, ir.IRBuilder.shl)
_operator(operator.rshift, _INTS, _INTS, ir.IRBuilder.lshr)
_operator(operator.lt, _INTS, _MASK, _compare_ints("<"))
_operator(operator.ne, _INTS, _MASK, _compare_ints("!="))


def _row_pointer(context: Any, builder: Any, kind: Any, array: Any, row: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    start = builder.mul(row, ir.Constant(row.type, LANES))
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _vector_of(array: Any) -> _Vector:
    return {scalar: vector for vector, scalar in _SCALARS.items()}[array.dtype]


@intrinsic
def load(_typing: Any, array: Any, row: Any) -> Any:
    """``array[row]`` of a C-contiguous float32 or int32 array with sixteen columns."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, number = arguments
        vector = context.get_value_type(signature.return_type)
        pointer = _row_pointer(context, builder, signature.args[0], source, number, vector)
        return builder.load(pointer, align=4)

    return _vector_of(array)(array, types.intp), emit


@intrinsic
def store(_typing: Any, array: Any, row: Any, value: Any) -> Any:
    """``array[row] = value`` for a C-contiguous float32 or int32 array with sixteen columns."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, number, lanes = arguments
        kind = signature.args[0]
        pointer = _row_pointer(context, builder, kind, target, number, lanes.type)
        builder.store(lanes, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector_of(array)), emit


@intrinsic
def store_bytes(_typing: Any, array: Any, row: Any, value: Any) -> Any:
    """``array[row] = value`` modulo 256 for a C-contiguous uint8 array with sixteen columns."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, number, lanes = arguments
        octets = builder.trunc(lanes, ir.VectorType(ir.IntType(8), LANES))
        kind = signature.args[0]
        pointer = _row_pointer(context, builder, kind, target, number, octets.type)
        builder.store(octets, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _INTS), emit


@intrinsic
def load_words(_typing: Any, array: Any, row: Any) -> Any:
    """``array[row]`` of a C-contiguous uint16 array with sixteen columns, as ``Ints``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, number = arguments
        words = ir.VectorType(ir.IntType(16), LANES)
        pointer = _row_pointer(context, builder, signature.args[0], source, number, words)
        return builder.zext(builder.load(pointer, align=2), context.get_value_type(_INTS))

    return _INTS(array, types.intp), emit


@intrinsic
def splat(_typing: Any, value: Any) -> Any:
    """Sixteen times the same float32 or int32."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    vector = _FLOATS if value == types.float32 else _INTS
    return vector(_SCALARS[vector]), emit


@intrinsic
def select(_typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """Lane by lane ``a if mask else b``."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(_MASK, a, a), emit


@intrinsic
def any_lane(_typing: Any, mask: Any) -> Any:
    """True when the mask is set in some lane."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(_MASK), emit


@intrinsic
def lookup(_typing: Any, table: Any, index: Any) -> Any:
    """Lane by lane ``table[index % 8]``; the table is eight numbers and the same eight again."""

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        features = context.codegen().magic_tuple()[2]
        if "+avx512f" in features:
            return _permute(builder, "llvm.x86.avx512.permvar.sf.512", *arguments)
        if "+avx2" in features:
            halves = [
                [_part(builder, vector, start) for vector in arguments] for start in (0, LANES // 2)
            ]
            low, high = (_permute(builder, "llvm.x86.avx2.permps", *half) for half in halves)
            both = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
            return builder.shuffle_vector(low, high, both)
        numbers, at = arguments
        each = [builder.extract_element(numbers, ir.Constant(ir.IntType(32), k)) for k in range(8)]
        found = [_splat(builder, number) for number in each]
        for bit in (4, 2, 1):
            set_bit = builder.and_(at, ir.Constant(at.type, [bit] * LANES))
            is_set = builder.icmp_signed("!=", set_bit, ir.Constant(at.type, [0] * LANES))
            pairs = zip(found[bit:], found[:bit], strict=True)
            found = [builder.select(is_set, high, low) for high, low in pairs]
        return found[0]

    return _FLOATS(_FLOATS, _INTS), emit


def _part(builder: Any, vector: Any, start: int) -> Any:
    half = ir.VectorType(ir.IntType(32), LANES // 2)
    picked = ir.Constant(half, list(range(start, start + LANES // 2)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), picked)


def _permute(builder: Any, name: str, table: Any, index: Any) -> Any:
    kind = ir.FunctionType(table.type, [table.type, index.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [table, index])


@intrinsic
def lane(_typing: Any, value: Any, index: Any) -> Any:
    """The number in one lane."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.extract_element(*arguments)

    return _SCALARS[value](value, types.intp), emit


@intrinsic
def first_least(_typing: Any, value: Any) -> Any:
    """The first lane that holds the least of sixteen numbers from 0 on. NaN counts as largest."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        vector = ir.VectorType(word, LANES)
        bits = builder.bitcast(arguments[0], vector)  # floats from 0 on are ordered as their bits
        reduction = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(word, [vector]),
            f"llvm.vector.reduce.umin.v{LANES}i32",
        )
        least = _splat(builder, builder.call(reduction, [bits]))
        is_least = builder.bitcast(builder.icmp_unsigned("==", bits, least), ir.IntType(LANES))
        zeros = builder.cttz(is_least, ir.Constant(ir.IntType(1), 1))
        return builder.zext(zeros, ir.IntType(64))

    return types.intp(_FLOATS), emit


def _conversion(name: str) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result = context.get_value_type(signature.return_type)
        return getattr(builder, name)(arguments[0], result)

    return emit


@intrinsic
def bits_of(_typing: Any, value: Any) -> Any:
    """The bit patterns of ``Floats`` as ``Ints``."""
    return _INTS(_FLOATS), _conversion("bitcast")


@intrinsic
def floats_of_bits(_typing: Any, value: Any) -> Any:
    """The ``Floats`` that have these bit patterns."""
    return _FLOATS(_INTS), _conversion("bitcast")


@intrinsic
def to_ints(_typing: Any, value: Any) -> Any:
    """Lane by lane truncated to int32; the values must fit."""
    return _INTS(_FLOATS), _conversion("fptosi")


@intrinsic
def to_floats(_typing: Any, value: Any) -> Any:
    """Lane by lane converted to float32, rounded to nearest."""
    return _FLOATS(_INTS), _conversion("sitofp")


def _llvm_function(name: str) -> Callable[..., Any]:
    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(arguments[0].type, [arguments[0].type])
        full_name = f"llvm.{name}.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, full_name)
        return builder.call(function, arguments)

    return emit


@intrinsic
def absolute(_typing: Any, value: Any) -> Any:
    """Lane by lane the magnitude."""
    return _FLOATS(_FLOATS), _llvm_function("fabs")


@intrinsic
def square_root(_typing: Any, value: Any) -> Any:
    """Lane by lane the correctly rounded square root."""
    return _FLOATS(_FLOATS), _llvm_function("sqrt")


@njit(nogil=True, fastmath=False)
def scratch(rows: int) -> NDArray[np.float32]:
    """Uninitialised float32[rows, 16] that starts at a cache line."""
    memory = np.empty(rows * LANES + _CACHE_LINE // 4, dtype=np.float32)
    start = (-memory.ctypes.data % _CACHE_LINE) // 4
    return memory[start : start + rows * LANES].reshape(rows, LANES)
