"""``llama_model_quantize`` of llama-cpp-python: the oracle for mixtures and whole files."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

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
) -> None:
    """Quantize a GGUF file with llama.cpp; types are ggml and llama_ftype numbers."""
    llama_cpp.llama_log_set(_QUIET, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.pure = pure
    if output_type is not None:
        params.output_tensor_type = output_type
    if embedding_type is not None:
        params.token_embedding_type = embedding_type
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    assert code == 0, f"llama_model_quantize failed on {source}"
