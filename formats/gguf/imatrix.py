"""llama.cpp importance matrices: GGUF files with Σx² per input channel of each weight.

``<tensor>.in_sum2`` f32[experts, columns] and ``<tensor>.counts`` f32[experts, 1]; the weight of a
channel is sum / count. An expert that never fired has count 0 and weighs every channel the same.

Source: ``llama-imatrix`` and ``load_imatrix`` in llama.cpp's quantize.cpp. Tensors with other
suffixes are ignored, as llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.architecture import TensorName
from zenconvert.errors import CorruptFile, InvalidInput
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.container import GgufFile, TensorInfo

SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"


def read_importance(path: Path, names: Sequence[TensorName]) -> dict[str, NDArray[np.float32]]:
    """Importance f32[columns] by neutral name, for the tensors that the file covers.

    Raises CorruptFile when the file is no imatrix and InvalidInput when nothing in it fits.
    """
    file = container.read(path)
    if file.metadata.get("general.type") != ("str", "imatrix"):
        raise CorruptFile(f"{path}: general.type should be 'imatrix'; is this an imatrix file?")
    importance: dict[str, NDArray[np.float32]] = {}
    for name in names:
        if f"{name.gguf}{SUMS}" not in file.tensors:
            continue
        values = _weights(file, name.gguf)
        row = name.expert or 0
        if row >= len(values) or values.shape[1] != name.shape[-1]:
            raise InvalidInput(
                f"{path}: {name.gguf}{SUMS} is {list(values.shape)} and the model's rows have "
                f"{name.shape[-1]} columns; the file is of another model"
            )
        importance[name.name] = values[row]
    if not importance:
        raise InvalidInput(f"{path}: none of its tensors is in this model")
    return importance


def _weights(file: GgufFile, name: str) -> NDArray[np.float32]:
    """Sum / count, f32[experts, columns]; ones where the count is 0."""
    sums = _read(file, f"{name}{SUMS}")
    counts = _read(file, f"{name}{COUNTS}").reshape(-1, 1)
    sums = sums.reshape(len(counts), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.where(counts > 0, sums / counts, np.float32(1))
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise CorruptFile(f"{file.path}: {name}{SUMS} holds negative or non-finite sums")
    return np.ascontiguousarray(weights.astype(np.float32))


def _read(file: GgufFile, name: str) -> NDArray[np.float32]:
    info: TensorInfo | None = file.tensors.get(name)
    if info is None or info.type is None or info.type.name != "f32":
        raise CorruptFile(f"{file.path}: the f32 tensor {name!r} is missing")
    with file.path.open("rb") as handle:
        handle.seek(info.offset)
        return np.frombuffer(handle.read(info.nbytes), dtype="<f4").reshape(info.shape)
