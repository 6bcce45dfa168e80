"""Key/values of GGUF files as llama.cpp wants them: other writers store them in other types.

llama.cpp loads no file whose numbers have another type than it asks for, or whose vocabulary has
another size than the embedding has rows. What is meant is plain, so it is read, and files that are
written from it have the usual form.

Source: ``GGUFMeta::GKV::get_kv`` and ``llama_vocab::impl::load`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any, Final

import numpy as np

from zenconvert.errors import first_names, several
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.model.gguf_family import GgufFamily
from zenconvert.model.tokenizer import TokenType, hole

PREDICTED: Final = "quantize.zenconvert.predicted_kl"
"""What types that were chosen by that are predicted to cost."""
_PREFIX: Final = "tokenizer.ggml."
_TOKENS: Final = f"{_PREFIX}tokens"
_OF_TOKENS: Final[Mapping[str, Any]] = {
    f"{_PREFIX}token_type": int(TokenType.UNUSED),
    f"{_PREFIX}scores": -1000.0,
}
"""Arrays with an entry for every token → what unused tokens have."""
_TYPES: Final = {
    "general.alignment": "u32", "general.file_type": "u32", "general.quantization_version": "u32",
    f"{_PREFIX}token_type": "arr:i32", f"{_PREFIX}add_space_prefix": "bool",
}  # fmt: skip
_OF_FAMILIES: Final = {"u32": "u32", "f32": "f32", "bool": "bool", "by_layer": "u32"}
_ROPE: Final = {
    "rope.dimension_count": "u32", "vocab_size": "u32", "expert_count": "u32",
    "expert_used_count": "u32", "rope.scale_linear": "f32", "rope.scaling.factor": "f32",
    "rope.scaling.attn_factor": "f32", "rope.scaling.original_context_length": "u32",
    "attention.causal": "bool", "rope.scaling.finetuned": "bool",
}  # fmt: skip
"""Keys of every family beside those of its table."""
_FURTHER: Final = "nextn_predict_layers"
_WHOLE: Final = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})
_REAL: Final = frozenset({"f32", "f64"})


def settled(
    metadata: Mapping[str, KeyValue], name: str, family: GgufFamily, rows: int
) -> tuple[dict[str, KeyValue], list[str]]:
    """The key/values of a file of the architecture ``name`` whose embedding has ``rows``, and a
    warning for what they were not."""
    wanted = dict(_TYPES) | {f"{name}.{key}": kind for key, kind in _ROPE.items()}
    for row in family.keys:
        if (kind := _OF_FAMILIES.get(row.type)) is not None:
            wanted[f"{name}.{row.name}"] = kind
    found = dict(metadata)
    for key in metadata:
        kind = wanted.get(key) or _of_tokenizer(key)
        if kind is not None and (other := _as_type(metadata[key], kind)) is not None:
            found[key] = other
    told = []
    if changed := [f"{k} ({metadata[k][0]})" for k in found if found[k] is not metadata[k]]:
        told.append(
            f"{several(len(changed), 'key has', 'keys have')} another type than llama.cpp reads, "
            f"{first_names(changed)}: the numbers are taken as they are meant"
        )
    size = found.get(f"{name}.vocab_size", ("u32", rows))
    if size != ("u32", rows) and size[0] == "u32":
        told.append(
            f"{name}.vocab_size is {size[1]} and the embedding has {rows} rows: these count"
        )
        found[f"{name}.vocab_size"] = ("u32", rows)
    kind, tokens = found.get(_TOKENS, ("", ()))
    if kind == "arr:str" and len(tokens) != rows:
        told.append(
            f"there are {len(tokens)} tokens and the embedding has {rows} rows: "
            + ("rows without a token" if len(tokens) < rows else "tokens without a row")
            + f" {'have placeholders' if len(tokens) < rows else 'are left out'}"
        )
        _fit(found, list(tokens), rows)
    return found, told


def without_further(
    metadata: Mapping[str, KeyValue], name: str, tensors: Collection[str]
) -> tuple[dict[str, KeyValue], tuple[str, ...]]:
    """The key/values of a file without layers behind the last that predict further tokens, and the
    names of their ``tensors``; all of it where there are none.

    llama.cpp counts them among the blocks, in lists of a value for every block, too.
    """
    blocks, further = (
        value if kind in _WHOLE else 0
        for kind, value in (
            metadata.get(f"{name}.{key}", ("", 0)) for key in ("block_count", _FURTHER)
        )
    )
    last = {f"blk.{number}" for number in range(max(blocks - further, 1), blocks)}
    left = tuple(n for n in tensors if ".".join(n.split(".")[:2]) in last)
    if not left:
        return dict(metadata), ()
    found = dict(metadata)
    for key, (kind, value) in metadata.items():
        if key.startswith(f"{name}.") and kind.startswith("arr:") and len(value) == blocks:
            found[key] = (kind, value[: blocks - further])
    found[f"{name}.block_count"] = ("u32", blocks - further)
    found[f"{name}.{_FURTHER}"] = ("u32", 0)
    return found, left


def predicted_kl(metadata: Mapping[str, KeyValue]) -> float | None:
    """What a file says of the divergence that its types were chosen by; None where it is silent."""
    kind, value = metadata.get(PREDICTED, ("", 0.0))
    return float(value) if kind == "f32" and isfinite(value) and value >= 0 else None


def is_spare_role(key: str, kind: str) -> bool:
    """Whether a key names the token of a role by a number that llama.cpp does not read, as -1."""
    return _of_tokenizer(key) == "u32" and kind != "u32"


def _of_tokenizer(key: str) -> str | None:
    if key.startswith(_PREFIX) and key.endswith("_token_id"):
        return "u32"
    return "bool" if key.startswith(f"{_PREFIX}add_") and key.endswith("_token") else None


def _as_type(given: KeyValue, kind: str) -> KeyValue | None:
    """The same number, or the one of an array, in another type; None where it is of that type, or
    is no such number."""
    own, value = given
    if own.startswith("arr:") and not kind.startswith("arr:") and len(value) == 1:
        own, value = own.removeprefix("arr:"), value[0]
    if own == kind and own == given[0]:
        return None
    if kind == "arr:i32":
        whole = own.removeprefix("arr:") in _WHOLE and own.startswith("arr:")
        return (kind, np.asarray(value).astype(np.int32)) if whole else None
    if kind == "bool":
        return (kind, bool(value)) if own == "bool" or (own in _WHOLE and value in (0, 1)) else None
    if kind == "u32":
        fits = own in _WHOLE and 0 <= value < 1 << 32
        return (kind, int(value)) if fits else None
    return (kind, float(np.float32(value))) if own in _WHOLE | _REAL else None


def _fit(found: dict[str, KeyValue], tokens: list[str], rows: int) -> None:
    """As many tokens as rows, and as many types and scores."""
    size = len(tokens)
    found[_TOKENS] = ("arr:str", [*tokens[:rows], *(hole(i) for i in range(size, rows))])
    for key, spare in _OF_TOKENS.items():
        kind, values = found.get(key, ("", ()))
        if kind in {"arr:i32", "arr:f32"} and len(values) >= size:
            added = np.full(max(0, rows - size), spare, dtype=values.dtype)
            found[key] = (kind, np.concatenate([values[: min(size, rows)], added]))
