"""Model hyperparameters ↔ GGUF key/values, as llama.cpp's converter writes them.

Source: ``TextModel.set_gguf_parameters`` and ``LlamaModel.set_gguf_parameters`` (conversion/ in
llama.cpp). Reals are stored as f32; reading gives the shortest decimal that rounds to that f32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from zenconvert.errors import CorruptFile
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.rope import scaling_keys
from zenconvert.model.architecture import Architecture
from zenconvert.model.hyperparameters import Hyperparameters

_READ: Final = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.layer_norm_rms_epsilon", "expert_count", "expert_used_count",
        "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
        "rope.scaling.attn_factor", "rope.scaling.original_context_length",
    }
)  # fmt: skip
_HARMLESS: Final = frozenset(
    {
        # llama.cpp reads these for other architectures, or for nothing
        "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)  # fmt: skip
_CONSTANTS: Final[dict[str, tuple[Any, ...]]] = {
    "attention.causal": (True,),
    "pooling_type": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_gating_func": (1,),
    "expert_weights_norm": (True,),
    "use_parallel_residual": (False,),
    "nextn_predict_layers": (0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
}
"""Keys that change nothing as long as they have one of these values."""
_INTEGERS: Final = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})


def model_keys(architecture: Architecture, hp: Hyperparameters) -> dict[str, KeyValue]:
    """The architecture's key/values in the converter's order, file type left out."""
    keys: dict[str, KeyValue] = {
        "block_count": ("u32", hp.layers),
        "context_length": ("u32", hp.context),
        "embedding_length": ("u32", hp.hidden),
        "feed_forward_length": ("u32", hp.ffn),
        "attention.head_count": ("u32", hp.heads),
        "attention.head_count_kv": ("u32", hp.kv_heads),
        **scaling_keys(hp),
        "rope.freq_base": ("f32", hp.rope_theta),
        "attention.layer_norm_rms_epsilon": ("f32", hp.rms_eps),
    }
    if hp.experts:
        keys["expert_count"] = ("u32", hp.experts)
        keys["expert_used_count"] = ("u32", hp.experts_used)
    if hp.explicit_head_dim:
        keys["attention.key_length"] = ("u32", hp.head_dim)
        keys["attention.value_length"] = ("u32", hp.head_dim)
    return {f"{architecture.gguf}.{key}": value for key, value in keys.items()}


def extra_keys(architecture: Architecture, hp: Hyperparameters) -> dict[str, KeyValue]:
    """Key/values that only some architectures have; they follow the file type."""
    known: dict[str, KeyValue] = {
        "vocab_size": ("u32", hp.vocab),
        "rope.dimension_count": ("u32", hp.head_dim),
        "expert_feed_forward_length": ("u32", hp.expert_ffn),
    }
    return {f"{architecture.gguf}.{key}": known[key] for key in architecture.gguf_keys}


class KeyReader:
    """Typed access to the metadata of one file; errors name the file and the key."""

    def __init__(self, where: str, metadata: Mapping[str, KeyValue], prefix: str = "") -> None:
        self.where, self.metadata, self.prefix = where, metadata, prefix

    def _get(self, key: str) -> tuple[str, KeyValue | None]:
        full = f"{self.prefix}{key}"
        return full, self.metadata.get(full)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of any width. Raises CorruptFile when it is absent or something else."""
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        if found is None or found[0] not in _INTEGERS or not 0 <= found[1] < 1 << 31:
            raise CorruptFile(
                f"{self.where}: {full} should be a positive integer, found {found!r:.100}"
            )
        return int(found[1])

    def real(self, key: str, default: float | None = None) -> float:
        """A float as its shortest decimal. Raises CorruptFile."""
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        if found is None or found[0] not in {"f32", "f64"}:
            raise CorruptFile(f"{self.where}: {full} should be a float, found {found!r:.100}")
        return float(str(np.float32(found[1]))) if found[0] == "f32" else float(found[1])

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises CorruptFile."""
        full, found = self._get(key)
        if found is None and default is not None:
            return default
        if found is None or found[0] != "str":
            raise CorruptFile(f"{self.where}: {full} should be a string, found {found!r:.100}")
        return str(found[1])

    def optional_integer(self, key: str) -> int | None:
        """An integer, or None when the key is absent. Raises CorruptFile."""
        return self.integer(key) if self._get(key)[1] is not None else None


def hf_config(
    architecture: Architecture,
    keys: KeyReader,
    *,
    vocab: int,
    tied: bool,
    bias_flags: Collection[str],
    rope_scaling: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A ``config.json`` dictionary from key/values (``keys`` prefixed with the architecture)."""
    heads = keys.integer("attention.head_count")
    sizes: dict[str, int | float | None] = {
        "vocab": vocab,
        "hidden": keys.integer("embedding_length"),
        "ffn": keys.integer("feed_forward_length"),
        "layers": keys.integer("block_count"),
        "heads": heads,
        "kv_heads": keys.integer("attention.head_count_kv", heads),
        "context": keys.integer("context_length"),
        "rms_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "head_dim": keys.optional_integer("attention.key_length"),
    }
    if architecture.experts:
        sizes["experts"] = keys.integer("expert_count")
        sizes["experts_used"] = keys.integer("expert_used_count")
    if "expert_ffn" in architecture.names:
        sizes["expert_ffn"] = keys.integer("expert_feed_forward_length")
    config: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_types[0],
        **{architecture.key(k): v for k, v in sizes.items() if v is not None},
        "hidden_act": "silu",
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "use_cache": True,
        "pad_token_id": None,  # families have defaults, which need not be in the vocabulary
        **_unlike_defaults(architecture),
    }
    flags = {flag: flag in bias_flags for flag in architecture.bias_flags}
    usual = architecture.defaults
    return {**config, **{k: v for k, v in sorted(flags.items()) if v or usual.get(k)}}


def _unlike_defaults(architecture: Architecture) -> dict[str, Any]:
    """What llama.cpp computes and a config that is silent does not say."""
    found = {
        key: values[0]
        for key, values in architecture.constants.items()
        if key in architecture.defaults and architecture.defaults[key] not in values
    }
    if architecture.defaults.get("sliding_window") is None and architecture.windows != "none":
        found["sliding_window"] = None
    return found


def strange_keys(keys: KeyReader, hp: Hyperparameters) -> dict[str, Any]:
    """Keys of the file's architecture that may change what is computed and are not understood."""
    same = {
        "attention.value_length": hp.head_dim,
        "rope.dimension_count": hp.head_dim,
        "vocab_size": hp.vocab,
        "expert_feed_forward_length": hp.expert_ffn or hp.ffn,
    }
    strange = {}
    for full, (_, value) in keys.metadata.items():
        key = full.removeprefix(keys.prefix)
        if key == full or key in _READ or key in _HARMLESS:
            continue
        if key in _CONSTANTS and value in _CONSTANTS[key]:
            continue
        if key not in same or value != same[key]:
            strange[full] = value.tolist() if hasattr(value, "tolist") else value
    return strange
