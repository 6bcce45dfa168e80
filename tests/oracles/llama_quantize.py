"""``llama_model_quantize`` of llama-cpp-python: the oracle for mixtures and whole files."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp.llama_cpp import llama_model_imatrix_data
from numpy.typing import NDArray

_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda level, text, data: None
)


def quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    threads: int = 2,
    pure: bool = False,
    output_type: int | None = None,
    embedding_type: int | None = None,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Quantize a GGUF file with llama.cpp; types are ggml and llama_ftype numbers.

    ``importance`` f32[columns] or f32[experts, columns] goes by the names of the file's tensors.
    """
    llama_cpp.llama_log_set(_QUIET, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.pure = pure
    if output_type is not None:
        params.output_tensor_type = output_type
    if embedding_type is not None:
        params.token_embedding_type = embedding_type
    if importance is not None:
        entries = [_entry(name.encode(), values) for name, values in importance.items()]
        params.imatrix = (llama_model_imatrix_data * (len(entries) + 1))(*entries)  # the last: null
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    assert code == 0, f"llama_model_quantize failed on {source}"


def _entry(name: bytes, values: NDArray[np.float32]) -> llama_model_imatrix_data:
    values = np.ascontiguousarray(values, dtype=np.float32)
    data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    entry = llama_model_imatrix_data(name, data, values.size)
    entry.values = values  # keeps the memory alive
    return entry
