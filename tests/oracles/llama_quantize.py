"""``llama_model_quantize`` of llama-cpp-python: the oracle for mixtures and whole files."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
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
    """Quantize a GGUF file with llama.cpp; types are ggml and llama_ftype numbers."""
    llama_cpp.llama_log_set(QUIET, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.pure = pure
    if output_type is not None:
        params.output_tensor_type = output_type
    if embedding_type is not None:
        params.token_embedding_type = embedding_type
    if importance is not None:
        params.imatrix = _imatrix(importance)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    assert code == 0, f"llama_model_quantize failed on {source}"


def load_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """What ``llama-quantize`` makes of an imatrix file, read by gguf-py."""
    reader = GGUFReader(path)
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert key in reader.fields, "llama-quantize refuses the file"
    tensors = {t.name: np.asarray(t.data) for t in reader.tensors}
    found = {}
    for name, sums in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        weight = name.removesuffix(".in_sum2")
        counts = np.rint(tensors[f"{weight}.counts"]).reshape(-1, 1)
        rows = sums.reshape(len(counts), -1)
        quotients = rows / np.maximum(counts, 1)
        found[weight] = np.where(counts > 0, quotients, np.float32(1)).astype(np.float32).ravel()
    return found


def _imatrix(importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """A C array of names and values, ended by one without a name."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries
