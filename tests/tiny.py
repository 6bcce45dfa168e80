"""Tiny checkpoints for tests: random models of every family, and raw folders that may be wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenconvert.formats import safetensors_container
from zenconvert.model import architecture as arch
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.encoding import Dense
from zenconvert.model.tensor_names import in_one_tensor, joined_shape

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 128,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
}


def raw_model(
    folder: Path,
    family: str | dict[str, Any] = "qwen2",
    *,
    dtype: str = "bf16",
    seed: int = 0,
    drop: tuple[str, ...] = (),
    biases: bool = False,
    queries: float = 1.0,
    states: float = 1.0,
    **changes: Any,
) -> Path:
    """A checkpoint of random weights without a tokenizer, of a family or of a config; ``changes``
    go into the config. ``biases`` writes those that the config announces, too. ``queries`` are
    multiplied by their norm, ``states`` by that before feed-forward networks."""
    config = {**(CONFIGS[family] if isinstance(family, str) else family), **changes}
    if "vocab_size_per_layer_input" in config:
        config["vocab_size_per_layer_input"] = config["vocab_size"]
    architecture = arch.for_model_type(config["model_type"])
    hp = architecture.sizes(config, where="test")
    announced = {m.name for m in architecture.modules if architecture.announces(config, m)}
    names = [
        n
        for n in architecture.tensor_names(hp)
        if n.hf not in drop and (n.required or (biases and n.module.name in announced))
    ]
    names = as_filed(names)
    encoding = Dense(dtype)
    random = np.random.default_rng(seed)
    header, _ = safetensors_container.pack_header(in_files(names, encoding), {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for name in names:
            values = random.standard_normal(name.shape) * 0.05
            if name.module.role == "norm":
                # what 1 is added to stays away from 0, as tiny numbers do not come back from that
                values += 0.25 if architecture.block.norms_add_one else 1
            if name.module.name.endswith(".q_norm"):
                values *= queries
            if name.module.name.endswith(".ffn_norm"):
                values *= states
            file.write(values.astype(encoding.numpy).tobytes())
    return folder


def as_filed(names: Sequence[arch.TensorName]) -> list[arch.TensorName]:
    """The tensors of a file in its order: experts that are in one tensor next to each other."""
    stacks = in_one_tensor(names, stacked=True)
    places = {n.name: parts for parts in stacks.values() for n in parts}
    found = dict.fromkeys(part for n in names for part in places.get(n.name, [n]))
    return list(found)


def in_files(
    names: Sequence[arch.TensorName], encoding: Dense
) -> list[tuple[str, Dense, tuple[int, ...]]]:
    """Name, type and shape of the tensors of a file that has these, in their order; those whose
    rows are in one tensor have to stand next to each other."""
    files: dict[str, list[arch.TensorName]] = {}
    joined = in_one_tensor(names, stacked=True)
    places = {n.name: stored for stored, parts in joined.items() for n in parts}
    for name in names:
        files.setdefault(places.get(name.name, name.hf), []).append(name)
    assert [n for parts in files.values() for n in parts] == list(names)
    return [(file, encoding, joined_shape(parts)) for file, parts in files.items()]


def first_rows(checkpoint: Checkpoint) -> dict[str, int]:
    """Neutral name → the row of its file's tensor at which a tensor begins."""
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    joined = in_one_tensor(names, stacked=True)
    places = {n.name: stored for stored, parts in joined.items() for n in parts}
    ends: dict[str, int] = {}
    found: dict[str, int] = {}
    for name in as_filed(names):
        file = places.get(name.name, name.hf)
        found[name.name] = ends.get(file, 0)
        ends[file] = found[name.name] + name.shape[0]
    return found
