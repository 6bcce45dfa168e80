"""Running ONNX folders in tests: through onnxruntime, onnxruntime-genai and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tests.families import FAMILIES
from tests.tiny import raw_model
from tests.tokenizers_for_tests import llama3, qwen2
from zenconvert import convert

STEPS = 4
"""Tokens that are decoded one by one after the prefill."""

HEAD = 64
"""Size of the heads of the tiny models, which some exporters leave open."""

SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, the last layer sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "llama 3": (
        "llama3",
        {
            "max_position_embeddings": 256,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama, yarn": (
        "llama3",
        {
            "max_position_embeddings": 256,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mixtral": ("mixtral", {}),
    "mixtral, three of five experts": (
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True, "head_dim": 64}),
    "qwen3 moe": ("qwen3_moe", {}),
    "qwen2 moe": ("qwen2_moe", {"moe_intermediate_size": 256}),
    "smollm3": (
        "smollm3",
        {
            "num_hidden_layers": 5,
            "layer_types": ["full_attention"] * 5,
            "no_rope_layers": [1, 1, 1, 0, 1],
        },
    ),
    "seed oss": ("seed_oss", {}),
    "gemma 4": ("gemma4", {}),
    "gemma 4, plain rotations": (
        "gemma4",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma 4 e2b": ("gemma4_e2b", {}),
    "gemma 4 moe": ("gemma4_moe", {}),
}
"""Every family and what graphs treat in a way of its own. Texts are longer than the windows."""


def variant(folder: Path, name: str, **others: Any) -> Path:
    """A random model without tokenizer."""
    family, changes = VARIANTS[name]
    config = FAMILIES[family].config
    return raw_model(folder, config, **SPECIAL, **changes, **others)


def with_tokenizer(folder: Path, family: str, **changes: Any) -> Path:
    """A random model with a byte-level tokenizer, which every family can have."""
    folder.mkdir()
    vocab = qwen2(folder) if family.startswith("qwen") else llama3(folder, 1216)  # 32 divides it
    settings = {**SPECIAL, "vocab_size": vocab, **changes}
    return raw_model(folder, FAMILIES[family].config, **settings)


def tokens(rows: int = 2, length: int = 28, vocab: int = 500) -> NDArray[np.int64]:
    """Random token ids [rows, length]."""
    ids = np.random.default_rng(0).integers(3, vocab, (rows, length))
    return np.asarray(ids, dtype=np.int64)


def transformers_logits(folder: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[rows, length, vocab] of transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits


def decoded_logits(folder: Path, work: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of transformers on the weights that are decoded from an ONNX folder."""
    convert(folder, work, "hf:f32")
    return transformers_logits(work, ids)


def session(graph: Path | bytes, *, level: int | None = None) -> Any:
    """An onnxruntime session; ``level`` is the accuracy level of what it fuses itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    model = str(graph) if isinstance(graph, Path) else graph
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def step(
    running: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, Any] | None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """One run: logits and the cache for the next."""
    if past is None:
        past = {}
        for value in running.get_inputs():
            if value.name.startswith("past_key_values."):
                kind = np.float16 if "float16" in value.type else np.float32
                head = value.shape[3] if isinstance(value.shape[3], int) else HEAD
                past[value.name] = np.zeros((len(ids), value.shape[1], 0, head), kind)
    names = [value.name for value in running.get_outputs()]
    feeds = {"input_ids": ids, "attention_mask": mask, **past}
    found = dict(zip(names, running.run(None, feeds), strict=True))
    logits = found.pop("logits").astype(np.float32)
    return logits, {k.replace("present", "past_key_values"): v for k, v in found.items()}


def onnx_logits(running: Any, ids: NDArray[np.int64], steps: int = STEPS) -> NDArray[np.float32]:
    """Logits of a prefill and ``steps`` single tokens with the cache."""
    begin = ids.shape[1] - steps
    ones = np.ones_like(ids)
    logits, past = step(running, ids[:, :begin], ones[:, :begin], None)
    parts = [logits]
    for at in range(begin, ids.shape[1]):
        logits, past = step(running, ids[:, at : at + 1], ones[:, : at + 1], past)
        parts.append(logits)
    return np.concatenate(parts, axis=1)


def genai_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What onnxruntime-genai generates greedily after a prompt."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, settings)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(i) for i in generator.get_sequence(0)][len(prompt) :]


def transformers_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers generates greedily, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = 2
    with torch.inference_mode():
        found = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return [int(i) for i in found[0]][len(prompt) :]
