"""Tiny whole models of many families, and our checkpoints of them by hand-made tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, StoredTensor, Tensor
from zenconvert.model.encoding import Dense
from zenconvert.model.table_rows import Balance, Module

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_hidden_layers": 2},
    "qwen3_moe": {**MOE, "num_hidden_layers": 4, "mlp_only_layers": [1], "norm_topk_prob": True},
    "qwen2_moe": {
        **MOE,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "shared_expert_intermediate_size": 40,
    },
    "gemma2": {
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 24,
    },
    "gemma3_text": {
        "num_hidden_layers": 12,
        "sliding_window": 16,
        "rope_theta": 1e5,
        "rope_local_base_freq": 1e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 24,
    },
    "smollm3": {"num_hidden_layers": 8},
    "olmo3": {"num_hidden_layers": 8, "sliding_window": 16},
    "granite": {
        "num_hidden_layers": 2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
        "logits_scaling": 0.25,
    },
    "cohere2": {"num_hidden_layers": 8, "sliding_window": 16, "logit_scale": 2.0},
    "gpt_oss": {
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": {
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "moe_intermediate_size": 24,
        "n_group": 4,
        "topk_group": 2,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "llama4_text": {
        "num_hidden_layers": 8,
        "intermediate_size_mlp": 80,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 16,
    },
}


def whole_model(family: str, folder: Path, **changes: Any) -> Any:
    """A random model in float32, saved to a folder."""
    fields = {**SIZES, **FAMILIES[family], **changes}
    if family == "deepseek_v3":
        del fields["head_dim"]
    config = AutoConfig.for_model(family, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            middle = float(value.mean()) if "norm" in name else 0.0
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(middle + noise * (0.2 if value.dim() == 1 else 0.15))
    model.save_pretrained(folder)
    return model


@dataclass
class _Row:
    """A tensor of ours: numbers, and what a table would say of them."""

    name: TensorName
    values: NDArray[np.float32]


def by_hand(folder: Path, **changes: Any) -> Checkpoint:
    """The checkpoint of a saved model, by a table that names every tensor as HF does; ``changes``
    go into its config."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    interleaved = config["model_type"] == "gpt_oss"
    rows = list(_rows(load_file(folder / "model.safetensors"), interleaved))
    tensors, offset = {}, 0
    with (folder / "weights.bin").open("wb") as file:
        for row in rows:
            stored = StoredTensor(folder / "weights.bin", offset, row.name.hf)
            name = row.name.name
            tensors[name] = Tensor(name, row.values.shape, Dense("f32"), stored)
            offset += file.write(np.ascontiguousarray(row.values).tobytes())
    modules = {row.name.module.name: row.name.module for row in rows if row.values.ndim == 2}
    architecture = SimpleNamespace(
        id="by hand",
        tensor_names=lambda hp: [row.name for row in rows],
        balances=[
            Balance(name, (name,))
            for name, module in modules.items()
            if module.role in {"linear", "router"}
        ],
    )
    sizes = SimpleNamespace(
        layers=config["num_hidden_layers"], hidden=config["hidden_size"],
        vocab=config["vocab_size"], length_border=0, sharing=0, full_layers=(), input_width=0,
        all_inputs=0,
    )  # fmt: skip
    return Checkpoint(
        path=folder,
        format="hf",
        architecture=cast(Any, architecture),
        hyperparameters=cast(Any, sizes),
        config=config,
        tensors=tensors,
        load_tokenizer=cast(Any, None),
    )


def _rows(tensors: dict[str, torch.Tensor], interleaved: bool) -> Iterator[_Row]:
    for name, value in tensors.items():
        values = value.float().numpy()
        stacked = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?", name)
        if stacked is None:
            yield _row(name, values)
            continue
        kind = "bias" if stacked[3] else "weight"
        for expert, part in enumerate(values):
            turned = part if stacked[3] else part.T
            path = f"{stacked[1]}.{expert}"
            if stacked[2] == "down":
                yield _row(f"{path}.down_proj.{kind}", turned)
                continue
            half = len(turned) // 2
            gate = turned[::2] if interleaved else turned[:half]
            up = turned[1::2] if interleaved else turned[half:]
            yield _row(f"{path}.gate_proj.{kind}", gate)
            yield _row(f"{path}.up_proj.{kind}", up)


def _row(hf: str, values: NDArray[np.float32]) -> _Row:
    """A tensor called as HF does, but for experts' modules and what every table calls alike."""
    name = hf.removeprefix("model.").replace("embed_tokens", "embed").replace("lm_head", "head")
    match = re.search(r"\.experts\.(\d+)\.(gate|up|down)_proj\.", name)
    expert = int(match[1]) if match else None
    if match:
        name = name.replace(match[0], f".{match[1]}.{match[2]}.")
    template = re.sub(r"^layers\.\d+\.", "layers.{layer}.", name.rpartition(".")[0])
    if match:
        template = re.sub(r"\.\d+\.", ".{expert}.", template)
    role: Any = "norm"
    if template in {"embed", "head"}:
        role = template
    elif template.endswith((".gate", ".router")) and expert is None:
        role = "router"
    elif values.ndim == 2:
        role = "linear"
    module = Module(template, hf.rpartition(".")[0], "", role, ())
    tensor = TensorName(name, hf, "", module, values.shape, required=True, expert=expert)
    return _Row(tensor, values)
