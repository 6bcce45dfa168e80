"""What llama.cpp's own matrix products read, through its evaluation callback: Σx² of every weight.

This is how ``llama-imatrix`` sees a model, without its rule that small batches do not count.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tests.oracles.llama_quantize import QUIET

_F32 = 0
_SOURCES = 10


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * _SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


@dataclass
class Sums:
    """Σx² f64[experts, columns] and rows i64[experts] of what was multiplied by each weight."""

    squares: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, name: str, experts: int, expert: int, rows: NDArray[np.float32]) -> None:
        """Add rows [tokens, columns]."""
        columns = rows.shape[-1]
        self.squares.setdefault(name, np.zeros((experts, columns)))
        self.counts.setdefault(name, np.zeros(experts, dtype=np.int64))
        self.squares[name][expert] += np.square(rows.astype(np.float64)).sum(0)
        self.counts[name][expert] += len(rows)


def _array(tensor: _Tensor, dtype: type[np.generic]) -> NDArray[np.generic]:
    """The numbers of a tensor, slowest dimension first; strides as ggml has them."""
    shape = tuple(reversed(tensor.ne))
    strides = tuple(reversed(tensor.nb))
    size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(tensor.data)
    return np.ndarray(shape, dtype, memory, strides=strides)


def _see(tensor: _Tensor, sums: Sums) -> None:
    name = tensor.src[0].contents.name.decode()
    read = tensor.src[1].contents
    if not name.endswith(".weight") or read.type != _F32:
        return
    rows = _array(read, np.float32)[0]  # [outer, rows, columns]
    experts = tensor.src[0].contents.ne[2]
    if not tensor.src[2]:
        sums.add(name, 1, 0, rows.reshape(-1, rows.shape[-1]))
        return
    chosen = _array(tensor.src[2].contents, np.int32)[0, 0]  # [tokens, used]
    for expert in range(experts):
        tokens, places = np.nonzero(chosen == expert)
        places = places % rows.shape[1]  # one row for all, where all experts read the same
        sums.add(name, experts, expert, rows[tokens, places])


def input_sums(model: Path, windows: Sequence[Sequence[int]]) -> Sums:
    """Run windows of token ids through a GGUF file, each by itself, with every token's output."""
    sums = Sums()
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_op_desc.restype = ctypes.c_char_p
    library.ggml_op_desc.argtypes = [ctypes.c_void_p]

    def see(pointer: int, ask: bool, _: int) -> bool:
        wanted = library.ggml_op_desc(pointer) in {b"MUL_MAT", b"MUL_MAT_ID"}
        if wanted and not ask:
            _see(ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents, sums)
        return wanted or not ask

    longest = max(map(len, windows))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = longest
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it works in halves
    settings.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(see)
    llama_cpp.llama_log_set(QUIET, None)
    loaded = llama_cpp.llama_model_load_from_file(
        str(model).encode(), llama_cpp.llama_model_default_params()
    )
    context = llama_cpp.llama_init_from_model(loaded, settings)
    batch = llama_cpp.llama_batch_init(longest, 0, 1)
    for window in windows:
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(loaded)
    return sums
