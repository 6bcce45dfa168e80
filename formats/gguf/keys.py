"""Model hyperparameters ↔ GGUF key/values, as llama.cpp's converter writes them.

Source: ``TextModel.set_gguf_parameters`` and ``LlamaModel.set_gguf_parameters`` (conversion/ in
llama.cpp). Reals are stored as f32; reading gives the shortest decimal that rounds to that f32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.key_reader import KeyReader
from zenconvert.formats.gguf.layer_keys import (
    PATTERN_KEY,
    ffn_of,
    flags,
    keyed,
    kv_heads_of,
    linear_of,
    of_layers,
    sections_of,
    with_modules,
)
from zenconvert.formats.gguf.rope import original_context, scaling_keys
from zenconvert.formats.gguf.window_keys import layers_of
from zenconvert.model.architecture import Architecture
from zenconvert.model.architecture_table import (
    BY_LAYER,
    FILE_TYPE,
    PATTERN,
    PLACES,
    RECURRENT,
    ROTATIONS,
    SECTIONS,
    TEXT,
)
from zenconvert.model.config_numbers import at_path
from zenconvert.model.gguf_family import GgufKey
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.sliding import FULL, SLIDES, layer_types

_READ: Final = frozenset(
    {
        "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
        "rope.scaling.attn_factor", "rope.scaling.original_context_length",
    }
)  # fmt: skip
"""Keys that are read beside those that a family's table has."""
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
    "attention.sliding_window": (0,),
}
"""Keys that change nothing as long as they have one of these values."""
_REQUIRED: Final = frozenset({"layers", "context", "hidden", "ffn", "heads", "rms_eps"})
_TOLD_OTHERWISE: Final = frozenset(
    {"vocab", "head_dim", "rotary_dim", "linear_value_width", "shared_width"}
)
"""Sizes whose rows are only compared with what other rows and tensors say."""
_OF_SCALING: Final = ("yarn_log", "yarn_log_tenth")
_SAID: Final = {"stated_head_dim": "head_dim", "turned_dim": "head_dim"}
"""Sizes under the names that configs have for them."""
_OF_LATENTS: Final = frozenset({"kv_rank", "key_dim", "value_dim", "head_dim"})
"""What a file has to say where keys and values are made of shorter rows."""
_COMPARED: Final = ("full_head_dim", "latent_width", "kv_rank")
"""What keys say of heads in some families, and others say as well."""
_PLACES: Final = (*PLACES, TEXT, SECTIONS)
"""Types of rows that hold no size."""


def model_keys(
    architecture: Architecture, hp: Hyperparameters, file_type: KeyValue, slides: Sequence[bool]
) -> dict[str, KeyValue]:
    """The architecture's key/values in the converter's order, the file type at its place.

    ``slides``: which layers see a window.
    """
    family, keys = architecture.in_gguf, dict[str, KeyValue]()
    prefix = f"{architecture.gguf}."
    for key in family.keys:
        if key.type == ROTATIONS:
            keys |= {f"{prefix}{name}": value for name, value in scaling_keys(hp, family).items()}
        elif key.type == FILE_TYPE:
            keys["general.file_type"] = file_type
        elif key.type == TEXT:
            keys[f"{prefix}{key.name}"] = ("str", key.size)
        elif key.type == PATTERN:
            keys[f"{prefix}{key.name}"] = ("arr:bool", np.array(slides))
        elif key.type == RECURRENT:
            recurrent = [layer in hp.linear_layers for layer in range(hp.layers)]
            keys[f"{prefix}{key.name}"] = ("arr:bool", np.array(recurrent))
        elif key.type == SECTIONS:
            sections = hp.rotary_sections or tuple(map(int, key.size.split()))
            padded = (*sections, 0, 0, 0, 0)[:4]
            keys[f"{prefix}{key.name}"] = ("arr:i32", np.array(padded, dtype=np.int32))
        elif key.constant is not None:
            keys[f"{prefix}{key.name}"] = (key.type, key.constant)
        elif key.type == BY_LAYER and (numbers := of_layers(key.size, hp, slides)):
            keys[f"{prefix}{key.name}"] = ("arr:i32", np.array(numbers, dtype=np.int32))
        else:
            number = hp.number(key.size) if key.size != "sliding_window" or any(slides) else None
            number = 0 if number is None and key.or_zero else number
            spare = key.only_other and number == family.implied_number(key.size, hp)
            if number is not None and not spare:
                whole = key.type != "f32"
                value = int(number) if whole else float(number)
                keys[f"{prefix}{key.name}"] = ("u32" if whole else "f32", value)
    if pattern := _pattern(architecture, hp, slides):
        keys[f"{prefix}{PATTERN_KEY}"] = ("arr:bool", np.array(pattern))
    return keys


def _pattern(
    architecture: Architecture, hp: Hyperparameters, slides: Sequence[bool]
) -> list[bool] | None:
    """Which layers slide, where llama.cpp takes it otherwise from a window alone."""
    period = architecture.in_gguf.window_period
    usual = [kind == SLIDES for kind in layer_types(hp.layers, period)] if period else []
    told = architecture.in_gguf.pattern_always or list(slides) != usual
    told = told and all(key.type != PATTERN for key in architecture.in_gguf.keys)
    return list(slides) if period and any(slides) and told else None


def hf_config(
    architecture: Architecture,
    keys: KeyReader,
    *,
    vocab: int,
    tied: bool,
    bias_flags: Collection[str],
    rope_scaling: Mapping[str, Any] | None,
    stored: Collection[str],
) -> dict[str, Any]:
    """A ``config.json`` dictionary from key/values (``keys`` prefixed with the architecture) and
    the names of the tensors that are ``stored``."""
    sizes = {**_read_sizes(architecture, keys), "vocab": vocab}
    theta, told = sizes.pop("rope_theta"), {architecture.key(size) for size in sizes}
    sizes = {k: v for k, v in sizes.items() if k not in _OF_SCALING}
    kinds = flags(architecture, sizes)
    sizes.pop("wide_ffn", None)
    config: dict[str, Any] = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        **{key: v for k, v in sizes.items() if "." not in (key := architecture.key(k))},
        **_sliding_rotations(architecture, sizes.get("sliding_theta"), theta),
        architecture.block.activation_key: architecture.constants[
            architecture.block.activation_key
        ][0],
        "rope_theta": theta,
        "rope_scaling": _scaling(architecture, keys, sizes, rope_scaling),
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "use_cache": True,
        "pad_token_id": None,  # families have defaults, which need not be in the vocabulary
        **{k: v for k, v in _unlike_defaults(architecture).items() if k not in told},
        **architecture.in_gguf.config,
        **layers_of(architecture, keys),
        **linear_of(architecture, keys),
        **_rotary_share(architecture, keys, sizes),
        **_without(architecture, sizes),
    }
    config |= kinds | keyed(architecture, config, stored) | with_modules(architecture, stored)
    config |= _implied(architecture, config, keys)
    config |= _head_of_rotations(architecture, config)
    biases = {flag: flag in bias_flags for flag in architecture.bias_flags}
    usual = architecture.defaults
    return {**config, **{k: v for k, v in sorted(biases.items()) if v or usual.get(k)}}


def _scaling(
    architecture: Architecture,
    keys: KeyReader,
    sizes: Mapping[str, float],
    scaling: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """Scaled rotations, with the sizes that configs have inside of them."""
    named = {architecture.key(size): value for size, value in sizes.items()}
    start = "rope_scaling."
    inside = {k.removeprefix(start): v for k, v in named.items() if k.startswith(start)}
    if sections := sections_of(architecture, keys):
        return {**(scaling or {"rope_type": "default"}), **sections}
    if not inside:
        # a class that scales by default has to be told that nothing is scaled
        scaled = "rope_type" in architecture.defaults.get("rope_parameters", {})
        plain = {"rope_type": "default"} if scaled else None
        return plain if scaling is None else dict(scaling)
    of = {"original_max_position_embeddings": original_context(keys)}
    return {**(scaling or {"rope_type": "default"}), **of, **inside}


def _head_of_rotations(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """The size of heads, which transformers reads for YaRN even of classes that leave it empty."""
    scaling = (config["rope_scaling"] or {}).get("rope_type")
    if "head_dim" in config or scaling not in architecture.in_gguf.stated_heads:
        return {}
    return {"head_dim": config["hidden_size"] // max(config["num_attention_heads"], 1)}


def _sliding_rotations(
    architecture: Architecture, theta: float | None, full: float
) -> dict[str, Any]:
    """Rotations of layers that slide, where configs have those of kinds of layers side by side.

    Where ``rope_theta`` alone says both, transformers 5 takes its default for these layers.
    """
    if architecture.key("sliding_theta") != f"rope_parameters.{SLIDES}.rope_theta":
        return {}
    if theta is None and architecture.older_key("sliding_theta") == "rope_theta":
        theta = None if full == architecture.defaults.get("rope_theta") else full
    if theta is None:
        return {}
    return {"rope_parameters": {SLIDES: {"rope_type": "default", "rope_theta": theta}}}


def with_full_rotations(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that has rotations of layers that slide, with those of all others beside them."""
    kinds = config.get("rope_parameters") or {}
    if SLIDES not in kinds:
        return dict(config)
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    rest = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    full = {**scaling, "rope_theta": config["rope_theta"]}
    return {**rest, "rope_parameters": {FULL: full, **kinds}}


def _read_sizes(architecture: Architecture, keys: KeyReader) -> dict[str, float]:
    """Size → number, of every row that the file has; the first row of a size counts."""
    family, found = architecture.in_gguf, dict[str, float]()
    required = _required(architecture, keys)
    for key in family.keys:
        if _tells_nothing(key):
            continue
        if key.type == BY_LAYER:
            found |= ffn_of(keys, key.name) if key.size == "ffn" else kv_heads_of(keys, key.name)
            continue
        size = _SAID.get(key.size, key.size)
        if size in found:
            continue
        if keys.has(key.name) or size in required:
            read = keys.integer if key.type == "u32" else keys.real
            found[size] = read(key.name)
        if key.or_zero and not found.get(size) and not _has_default(architecture, size):
            found.pop(size, None)
        elif found.get(size) == 0 and key.type == "f32":
            number = family.of_zero(size)
            found = {k: v for k, v in {**found, size: number}.items() if v is not None}
    if (whole := found.pop("key_dim", None)) is not None:
        found["plain_dim"] = max(whole - found["head_dim"], 0)
    zeros = {key.size for key in family.keys if key.or_zero and keys.has(key.name)}
    for size, value in family.implied.items():
        if size not in found and size not in zeros and not isinstance(value, str):
            found[size] = value
    if not architecture.experts and not found.get("experts"):  # 0 of them, as some files say
        found = {size: value for size, value in found.items() if not size.startswith("expert")}
    return {**found, "kv_heads": found.get("kv_heads", found["heads"])}


def _required(architecture: Architecture, keys: KeyReader) -> frozenset[str]:
    """Sizes that a file has to say."""
    required = _REQUIRED
    if architecture.experts or keys.integer("expert_count", 0):
        required |= {size for size in architecture.names if size.startswith("expert")}
    return required | _OF_LATENTS if "kv_rank" in architecture.names else required


def _tells_nothing(key: GgufKey) -> bool:
    """Whether a row holds no size, or one that others say."""
    told = key.size in _TOLD_OTHERWISE or key.size == "latent_width"
    return key.type in _PLACES or told or key.unread or key.constant is not None


def _has_default(architecture: Architecture, size: str) -> bool:
    """Whether a config that is silent on a size has one."""
    return isinstance(architecture.defaults.get(architecture.key(size)), int)


def _without(architecture: Architecture, sizes: Mapping[str, float]) -> dict[str, None]:
    """Sizes that a config has to deny where a file has none, as it has them by default."""
    denied = (s for s in ("q_rank",) if s in architecture.names and s not in sizes)
    return {architecture.key(size): None for size in denied}


def _rotary_share(
    architecture: Architecture, keys: KeyReader, sizes: Mapping[str, float]
) -> dict[str, float]:
    """How much of a head is rotated, where it is not what a config that is silent says."""
    if "rotary_share" not in architecture.names:
        return {}
    head = int(sizes.get("head_dim", sizes["hidden"] // max(sizes["heads"], 1)))
    rotated, key = keys.integer("rope.dimension_count", head), architecture.key("rotary_share")
    if "rotary_channels" in architecture.names:
        return {architecture.key("rotary_channels"): rotated}
    whole = rotated == head and architecture.defaults.get(key, 1) == 1
    return {} if whole or not head else {key: rotated / head}


def _implied(
    architecture: Architecture, config: Mapping[str, Any], keys: KeyReader
) -> dict[str, Any]:
    """Sizes that llama.cpp takes from others, under the keys that a config has them."""
    family = architecture.in_gguf
    named = [s for s, v in family.implied.items() if isinstance(v, str) and s in architecture.names]
    found = {}
    for size in named:
        names = architecture.names[size]
        keys_of_it = [names] if isinstance(names, str) else names
        if all(at_path(config, key) is None for key in keys_of_it):
            number = family.implied_number(size, architecture.sizes(config, where=keys.where))
            assert number is not None  # sizes that others imply are there
            found[architecture.key(size)] = int(number) if number == int(number) else number
    return found


def _unlike_defaults(architecture: Architecture) -> dict[str, Any]:
    """What llama.cpp computes and a config that is silent does not say."""
    found = {
        key: values[0]
        for key, values in {**architecture.constants, **architecture.needs}.items()
        if key in architecture.defaults and architecture.defaults[key] not in values
    }
    rule, defaults = architecture.block.windows, architecture.defaults
    used = rule == "upper_layers" and "use_sliding_window" not in defaults
    if rule != "none" and (used or defaults.get("sliding_window") is None):
        found["sliding_window"] = None
    return found


def strange_keys(
    architecture: Architecture, keys: KeyReader, hp: Hyperparameters
) -> dict[str, Any]:
    """Keys of the file's architecture that may change what is computed and are not understood."""
    same = {
        "attention.key_length": hp.head_dim,
        "attention.value_length": hp.head_dim,
        "rope.dimension_count": hp.rotary_dim,
        "vocab_size": hp.vocab,
        "expert_feed_forward_length": hp.expert_ffn or hp.ffn,
    }
    for row in architecture.in_gguf.keys:
        if row.constant is not None:
            same[row.name] = row.constant
        elif row.size in _TOLD_OTHERWISE or (row.name in same and row.size in _COMPARED):
            same[row.name] = int(hp.number(row.size) or 0)
    same |= dict.fromkeys(architecture.in_gguf.switches, True)
    rows = {key.name for key in architecture.in_gguf.keys} - set(same)
    if architecture.in_gguf.window_period:
        rows.add(PATTERN_KEY)
    strange = {}
    for full, (_, given) in keys.metadata.items():
        key = full.removeprefix(keys.prefix)
        if key == full or key in rows or key in _READ or key in _HARMLESS - set(same):
            continue
        value = given.tolist() if hasattr(given, "tolist") else given
        if key not in same and key in _CONSTANTS and value in _CONSTANTS[key]:
            continue
        if key not in same or value != same[key]:
            strange[full] = value
    flags = [row.name for row in architecture.in_gguf.keys if row.constant is True]
    absent = {f"{keys.prefix}{flag}": False for flag in flags if not keys.has(flag)}
    return strange | absent  # which llama.cpp takes for false
