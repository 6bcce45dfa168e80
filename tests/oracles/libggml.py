"""libggml-base as llama-cpp-python ships it, called through ctypes: the oracle for block bytes.

The library is built for plain x86-64 (no FMA), which is the flavour that zenconvert reproduces.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zenconvert.ggml.types import BY_NAME

FLOAT_P = ctypes.POINTER(ctypes.c_float)


@cache
def library() -> ctypes.CDLL:
    """Load libggml-base once and declare what the tests call."""
    spec = find_spec("llama_cpp")
    assert spec is not None, "llama-cpp-python is not installed; scripts/test installs it"
    assert spec.origin is not None
    lib = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        FLOAT_P,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        FLOAT_P,
    ]
    return lib


def quantize(
    type_name: str, weights: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encode ``weights`` f32[rows, columns] with libggml -> u8[rows, row_bytes]."""
    lib, ggml_type = library(), BY_NAME[type_name]
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    rows, columns = weights.shape
    out = np.zeros((rows, ggml_type.row_bytes(columns)), dtype=np.uint8)
    weights_of_columns = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        weights_of_columns = importance.ctypes.data_as(FLOAT_P)
    lib.ggml_quantize_init(ggml_type.id)
    written = lib.ggml_quantize_chunk(
        ggml_type.id,
        weights.ctypes.data_as(FLOAT_P),
        out.ctypes.data_as(ctypes.c_void_p),
        0,
        rows,
        columns,
        weights_of_columns,
    )
    assert written == out.nbytes
    return out


class _Traits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, FLOAT_P, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def dequantize(type_name: str, blocks: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Decode u8[rows, row_bytes] with libggml -> f32[rows, columns]."""
    lib, ggml_type = library(), BY_NAME[type_name]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    traits = lib.ggml_get_type_traits(ggml_type.id).contents
    assert traits.type_size == ggml_type.type_size
    assert traits.blck_size == ggml_type.block_size
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((blocks.shape[0], columns), dtype=np.float32)
    traits.to_float(blocks.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(FLOAT_P), out.size)
    return out
