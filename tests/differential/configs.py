"""Random small configs over every field that a family knows, and over some that none does."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]

LENGTH = 40
"""Tokens of the texts that are run; windows and original contexts lie on both sides of it."""
FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
)  # fmt: skip
_UNKNOWN: tuple[tuple[str, Any], ...] = (
    ("attn_logit_softcapping", 30.0),
    ("final_logit_softcapping", 20.0),
    ("residual_multiplier", 0.5),
    ("trainer_run", "abc"),
    ("clip_qkv", 8.0),
    ("pretraining_tp", 2),
    ("partial_rotary_factor", 0.5),
    ("use_mrope", True),
)


def draw(rng: random.Random, family: str, vocab: int) -> Config:
    """One config."""
    heads, size = rng.choice([(2, 8), (2, 16), (4, 8), (4, 16), (6, 8)])
    config: Config = {
        "model_type": family,
        "hidden_size": heads * size,
        "intermediate_size": rng.choice([24, 40, 64]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "vocab_size": vocab,
        "max_position_embeddings": rng.choice([LENGTH, 64, 256]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.3,
        "hidden_act": rng.choice(["silu"] * 9 + ["swish", "gelu", "relu"]),
        "bos_token_id": rng.randrange(vocab),
        "eos_token_id": rng.choice([rng.randrange(vocab), [1, 2]]),
        "torch_dtype": "float32",
    }
    if rng.random() < 0.3:
        config["head_dim"] = rng.choice([size, size, 8, 24])
    if rng.random() < 0.1:
        config["num_key_value_heads"] = None
    _rotations(rng, config)
    _FIELDS[family](rng, config)
    if rng.random() < 0.1:
        key, value = rng.choice(_UNKNOWN)
        config[key] = value
    kept = "num_key_value_heads"  # of which some families' default fits no small model
    return {k: v for k, v in config.items() if v is not None or k == kept or rng.random() < 0.5}


def _rotations(rng: random.Random, config: Config) -> None:
    theta = rng.choice([100.0, 10000.0, 500000.0, 1e6])
    scaling = _scaling(rng, config)
    spelling = rng.choice(["old", "new", "both", "older"])
    if spelling in ("old", "older", "both"):
        config["rope_theta"] = theta
        if scaling or rng.random() < 0.5:
            config["rope_scaling"] = dict(scaling) or None
    if spelling == "older" and scaling:
        config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    if spelling in ("new", "both"):
        kind = {} if scaling else {"rope_type": "default"}
        config["rope_parameters"] = {"rope_theta": theta, **kind, **scaling}


def _scaling(rng: random.Random, config: Config) -> Config:
    kind = rng.choice(["default"] * 4 + ["linear", "linear", "llama3", "llama3", "dynamic"]
                      + ["yarn"] * 4)  # fmt: skip
    if kind == "default":
        return {}
    scaling: Config = {"rope_type": kind, "factor": rng.choice([1.5, 2.0, 4.0, 32.0])}
    if kind == "llama3":
        low = rng.choice([1.0, 1.0, 1.0, 2.0])
        scaling |= {
            "low_freq_factor": low,
            "high_freq_factor": low * rng.choice([2.0, 4.0]),
            "original_max_position_embeddings": rng.choice([16, 32, 8192]),
        }
    if kind == "yarn":
        if rng.random() < 0.8:
            scaling["original_max_position_embeddings"] = rng.choice([16, 32, 4096])
        for key, values in (
            ("attention_factor", [0.7, 1.0, 1.5]),
            ("beta_fast", [32, 16, 64.0]),
            ("beta_slow", [1, 2]),
            ("truncate", [True, False]),
        ):
            if rng.random() < 0.25:
                scaling[key] = rng.choice(values)
        if rng.random() < 0.3:
            scaling |= {"mscale": rng.choice([0.5, 1.0]), "mscale_all_dim": rng.choice([0.8, 1.0])}
        elif rng.random() < 0.1:
            scaling["mscale"] = 0.5
    return scaling


def _llama(rng: random.Random, config: Config) -> None:
    for flag in ("attention_bias", "mlp_bias"):
        if rng.random() < 0.4:
            config[flag] = rng.random() < 0.7


def _window(rng: random.Random, config: Config) -> None:
    config["sliding_window"] = rng.choice([None, None, 8, LENGTH - 1, LENGTH, 64, 256])


def _mixtral(rng: random.Random, config: Config) -> None:
    _window(rng, config)
    experts = rng.choice([2, 3, 4])
    config |= {"num_local_experts": experts, "num_experts_per_tok": rng.randint(1, experts)}
    if rng.random() < 0.3:
        config |= {"router_jitter_noise": 0.0, "router_aux_loss_coef": 0.02}


def _qwen2(rng: random.Random, config: Config) -> None:
    if rng.random() < 0.5:
        config["use_sliding_window"] = rng.random() < 0.6
    _window(rng, config)
    layers = config["num_hidden_layers"]
    if rng.random() < 0.5:
        config["max_window_layers"] = rng.randint(0, layers)
    if config.get("use_sliding_window") and config["sliding_window"] and rng.random() < 0.4:
        kinds = ("full_attention", "sliding_attention")
        config["layer_types"] = [rng.choice(kinds) for _ in range(layers)]


def _own_heads(rng: random.Random, config: Config) -> None:
    config["head_dim"] = rng.choice([8, 16, 24])


def _qwen3(rng: random.Random, config: Config) -> None:
    _qwen2(rng, config)
    _own_heads(rng, config)
    if rng.random() < 0.3:
        config["attention_bias"] = rng.random() < 0.2


def _qwen3_moe(rng: random.Random, config: Config) -> None:
    _own_heads(rng, config)
    if rng.random() < 0.5:
        config["use_sliding_window"] = rng.random() < 0.6
    _window(rng, config)
    experts = rng.choice([2, 3, 4])
    config |= {
        rng.choice(["num_experts", "num_local_experts"]): experts,
        "num_experts_per_tok": rng.randint(1, experts),
        "moe_intermediate_size": rng.choice([16, 24]),
    }
    if rng.random() < 0.9:
        config["norm_topk_prob"] = rng.random() < 0.8
    if rng.random() < 0.3:
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}


def _seed_oss(rng: random.Random, config: Config) -> None:
    _own_heads(rng, config)
    config["pad_token_id"] = 0
    for flag, likely in (("attention_bias", 0.7), ("attention_out_bias", 0.2), ("mlp_bias", 0.1)):
        if rng.random() < 0.5:
            config[flag] = rng.random() < likely


def _smollm3(rng: random.Random, config: Config) -> None:
    config["pad_token_id"] = 0
    config["num_hidden_layers"] = layers = rng.choice([2, 4, 5])
    if rng.random() < 0.5:
        interval = rng.choice([4, 4, 4, 2])
        config["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(layers)]
    elif rng.random() < 0.3:
        config["no_rope_layer_interval"] = rng.choice([4, 2])
    if rng.random() < 0.3:
        config["layer_types"] = ["full_attention"] * layers
    for flag in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if rng.random() < 0.2:
            config[flag] = rng.random() < 0.4


_FIELDS: dict[str, Callable[[random.Random, Config], None]] = {
    "llama": _llama,
    "mistral": _window,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
}


def is_common(config: Config) -> bool:
    """Whether every runtime computes a config: plain or linear rotations, heads of the usual size,
    no window that a text can leave, and nothing that only some models have."""
    unusual = {key for key, _ in _UNKNOWN} | {"layer_types", "no_rope_layer_interval"}
    scalings = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    kinds = {s.get("rope_type", s.get("type", "default")) for s in scalings if s}
    size = config["hidden_size"] // config["num_attention_heads"]
    window = config.get("sliding_window")
    flags = ("attention_bias", "mlp_bias", "attention_out_bias", "use_sliding_window")
    return (
        config["model_type"] != "smollm3"
        and config["hidden_act"] in ("silu", "swish")
        and not unusual & {key for key, value in config.items() if value is not None}
        and kinds <= {"default", "linear"}
        and config.get("head_dim") in (None, size)
        and (window is None or window >= config["max_position_embeddings"])
        and not any(config.get(flag) for flag in flags)
        and config.get("norm_topk_prob", True) is True
    )
