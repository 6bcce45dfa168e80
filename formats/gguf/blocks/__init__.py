"""Block codecs: float32 rows to ggml block bytes and back, bit for bit as libggml does it.

The reference is libggml-base built for plain x86-64: strict sequential IEEE binary32, no fused
multiply-add. Tables below name the module that holds the kernels of each type; a module (and with
it Numba) is imported when one of its types is first used.

A kernel module exports ``ENCODERS`` and / or ``DECODERS``, dicts from type name to :data:`Encoder`
and :data:`Decoder`. Both release the GIL and keep no state: callers may run them on slabs of rows
in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import CorruptFile, InvalidInput, UnsupportedEncoding
from zenconvert.formats.gguf.ggml_types import BY_NAME, GgmlType

type Encoder = Callable[[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8]], None]
