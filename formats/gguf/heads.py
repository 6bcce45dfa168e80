"""Matrices that GGUF has as two tensors, which make keys and values of compressed states.

HF files have one matrix of them, ``[heads · (keys + values), rank]``, the rows of one head after
those of another. llama.cpp multiplies queries by the part of the keys in place of these, so its
converter turns that, head by head: ``[heads, rank, keys]`` and ``[heads, values, rank]``.

Source: ``DeepseekV2Model.modify_tensors`` of the converter, ``llama_model_deepseek2`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from zenconvert.errors import InvalidInput, MissingTensor, UnsupportedEncoding
from zenconvert.formats.gguf.container import TensorInfo
from zenconvert.ggml.encoding import encoding_of
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import (
    HALVES,
    HeadRows,
    StoredHalf,
    StoredHalves,
    StoredTensor,
    Tensor,
)
from zenconvert.model.decoded import decoded
from zenconvert.model.hyperparameters import Hyperparameters


def _heads(hp: Hyperparameters) -> HeadRows:
    return HeadRows(hp.heads, hp.plain_dim, hp.value_dim)


def _shapes(heads: HeadRows, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of keys and of values."""
    return (heads.heads, rank, heads.keys), (heads.heads, heads.values, rank)


def halves(name: TensorName, tensor: Tensor, hp: Hyperparameters) -> dict[str, Tensor]:
    """GGUF name → keys and values of a matrix, by themselves."""
    stored, heads = tensor.stored, _heads(hp)
    if isinstance(stored, StoredHalves):
        return dict(zip(name.gguf_files, (stored.keys, stored.values), strict=True))
    keys, values = _shapes(heads, tensor.columns)
    of = decoded([tensor.encoding])
    first, second = _names(name)
    turned = Tensor(first, keys, of, StoredHalf(tensor, heads, keys=True))
    plain = Tensor(second, values, tensor.encoding, StoredHalf(tensor, heads, keys=False))
    return dict(zip(name.gguf_files, (turned, plain), strict=True))


def _names(name: TensorName) -> tuple[str, str]:
    """Of both halves."""
    first, second = HALVES
    module = name.name.removesuffix(".weight")
    return f"{module}{first}", f"{module}{second}"


def joined(name: TensorName, infos: Mapping[str, TensorInfo], hp: Hyperparameters) -> Tensor:
    """The matrix of the two tensors of a file. Raises InvalidInput, MissingTensor and
    UnsupportedEncoding."""
    heads, rank = _heads(hp), name.shape[1]
    parts = []
    for stored, shape, half in zip(
        name.gguf_files, _shapes(heads, rank), _names(name), strict=True
    ):
        info = infos.get(stored)
        if info is None:
            path = next(iter(infos.values())).path
            raise MissingTensor(f"{path}: tensor {stored!r} is missing")
        if info.shape != shape:
            raise InvalidInput(
                f"{info.path}: tensor {info.name!r} has shape {list(info.shape)}, the metadata "
                f"calls for {list(shape)}"
            )
        if info.type is None:
            raise UnsupportedEncoding(
                f"{info.path}: tensor {info.name!r} has the unknown ggml type {info.type_id}"
            )
        place = StoredTensor(info.path, info.offset, info.name)
        parts.append(Tensor(half, shape, encoding_of(info.type), place))
    keys, values = parts
    encoding = decoded([keys.encoding, values.encoding])
    return Tensor(name.name, name.shape, encoding, StoredHalves(keys, values, heads))
