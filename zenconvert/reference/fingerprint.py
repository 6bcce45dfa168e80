"""A digest that tells models apart without reading them whole.

It covers the sizes of the model and one decoded row of every tensor (all of a vector), so that two
files that hold the same numbers share it, whatever their format, and a fine-tuned or quantized
model does not.
"""

from __future__ import annotations

import hashlib
import json

from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.reference.reference import ReadRows

_SIZES = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "experts")


def fingerprint(checkpoint: Checkpoint, read_rows: ReadRows) -> str:
    """SHA-256, as hexadecimal digits."""
    sizes = {name: getattr(checkpoint.hyperparameters, name) for name in _SIZES}
    found = hashlib.sha256(json.dumps([checkpoint.architecture.id, sizes]).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        found.update(f"\0{name}\0{tensor.shape}\0".encode())
        found.update(_sample(tensor, read_rows))
    return found.hexdigest()


def _sample(tensor: Tensor, read_rows: ReadRows) -> bytes:
    """The middle row of a matrix, or a whole vector, as float32."""
    if tensor.columns == 1:
        return read_rows(tensor, 0, tensor.rows).tobytes()
    row = tensor.rows // 2
    band = tensor.order.band if tensor.order is not None else 1
    begin = row // band * band
    values = read_rows(tensor, begin, min(begin + band, tensor.rows))
    middle: bytes = values[row - begin].tobytes()
    return middle
