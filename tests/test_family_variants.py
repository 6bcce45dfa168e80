"""Fields of the families that their releases do not use: every runtime computes what transformers
does, or the plan names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.differential import runs
from tests.families import FAMILIES
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import InvalidInput, PlanError, Unsupported

TEXT = runs.ids(40, 3)
SIZES = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": runs.VOCAB,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "torch_dtype": "float32",
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"head_dim": 16}

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a flag of windows that the family has not": (
        "starcoder2", {"sliding_window": 8, "use_sliding_window": False}, "sliding_window",
    ),
    "another name of a function": ("starcoder2", {"hidden_act": "gelu_new"}, ""),
    "biases of attention": ("qwen3", {**HEADS, "attention_bias": True}, "attention_bias"),
    "biases beside experts": (
        "qwen3_moe", {**HEADS, **EXPERTS, "attention_bias": True}, "attention_bias",
    ),
    "biases of parallel halves": ("cohere", {"attention_bias": True}, "attention_bias"),
    "biases everywhere": ("ernie4_5", {**HEADS, "use_bias": True}, "use_bias"),
    "norms of heads by a flag": (
        "glm4_moe",
        {
            "head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "use_qk_norm": True, "n_shared_experts": 2,
        },
        "",
    ),
    "a softcap that is not read, and no layer slides": (
        "gemma3",
        {
            **HEADS, "attn_logit_softcapping": 0.5, "num_hidden_layers": 2,
            "layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 16,
        },
        "",
    ),
    "all layers slide": (
        "gemma3",
        {
            **HEADS, "num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2,
            "query_pre_attn_scalar": 16,
        },
        "",
    ),
    "an original context beside the scaling": (
        "llama3",
        {
            "head_dim": 16, "original_max_position_embeddings": 16, "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
        "",
    ),
    "a factor that follows from the contexts": (
        "granite",
        {
            "original_max_position_embeddings": 32.0, "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": None},
        },
        "",
    ),
    "a base that nothing says": (
        "smollm3",
        {
            "rope_theta": None, "num_hidden_layers": 2, "no_rope_layers": [1, 1],
            "layer_types": ["full_attention"] * 2,
        },
        "",
    ),
}  # fmt: skip
"""Family, other fields (None: silent), and what a plan of GGUF names."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


def gap(found: runs.Logits, expected: runs.Logits) -> float:
    return float(np.abs(found - expected).max()) / float(expected.std())


@pytest.mark.parametrize("what", CASES)
def test_unusual_fields_are_computed_or_named(what: str, tokenizer: Path, tmp_path: Path) -> None:
    name, fields, named = CASES[what]
    family = FAMILIES[name]
    config = {**family.config, **SIZES, **fields}
    config = {k: v for k, v in config.items() if v is not None or k not in fields}
    source = runs.write_model(tmp_path / "source", config, tokenizer, seed=1)
    expected = runs.in_transformers(source, TEXT)  # which has a place for every tensor
    assert open_checkpoint(source).warnings == ()
    convert(source, tmp_path / "onnx", "onnx:f32")
    assert gap(runs.in_onnxruntime(tmp_path / "onnx", TEXT), expected) < 1e-3
    convert(tmp_path / "onnx", tmp_path / "back", "hf:f32")
    assert gap(runs.in_transformers(tmp_path / "back", TEXT), expected) < 1e-3
    if named:
        with pytest.raises(PlanError, match=named):
            convert(source, tmp_path / "m.gguf", "gguf:f32", exact=True)
        return
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    assert gap(runs.in_llamacpp(tmp_path / "m.gguf", TEXT), expected) < family.llamacpp


@pytest.mark.parametrize("normed", [True, False])
def test_norms_by_a_flag_come_back_from_gguf(normed: bool, tokenizer: Path, tmp_path: Path) -> None:
    config = {**FAMILIES["glm4_moe"].config, **SIZES, "head_dim": 32, "use_qk_norm": normed}
    source = runs.write_model(tmp_path / "source", config, tokenizer, seed=1)
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    assert open_checkpoint(tmp_path / "m.gguf").config["use_qk_norm"] is normed


def test_rotated_channels_that_onnxruntime_does_not_take(tokenizer: Path, tmp_path: Path) -> None:
    config = {**FAMILIES["phi"].config, **SIZES}  # 12 of 16 channels
    source = runs.write_model(tmp_path / "source", config, tokenizer, seed=1)
    with pytest.raises(PlanError, match=r"partial_rotary_factor is 0\.75: .* 12 rotated channels"):
        plan(source, "onnx:f32")
    convert(source, tmp_path / "onnx", "onnx:f32-standard")
    expected = runs.in_transformers(source, TEXT)
    assert gap(runs.in_onnxruntime(tmp_path / "onnx", TEXT), expected) < 1e-3


def written(name: str, tokenizer: Path, place: Path, **fields: Any) -> Path:
    """A small model of a family, with other fields."""
    return runs.write_model(place, {**FAMILIES[name].config, **SIZES, **fields}, tokenizer, seed=1)


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "cohere2", "gemma4"])
def test_models_that_llamacpp_has_with_windows_alone(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    """It does not load files without one, or takes one of 4,096 tokens."""
    layers = FAMILIES[name].config["num_hidden_layers"]
    own = {} if name == "gemma4" else {"head_dim": 16}
    source = written(
        name, tokenizer, tmp_path / "source", layer_types=["full_attention"] * layers, **own
    )
    with pytest.raises(PlanError, match=r"layer_types is .*llama\.cpp has layers with a window in"):
        plan(source, "gguf:f32")
    assert plan(source, "hf:f32").exact


def test_experts_of_which_none_is_asked(tokenizer: Path, tmp_path: Path) -> None:
    """llama.cpp ends its process."""
    with pytest.raises(InvalidInput, match="num_experts_per_tok should be an integer from 1"):
        written("qwen3_moe", tokenizer, tmp_path / "source", num_experts_per_tok=0)


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 3}]
)
def test_rotations_that_are_plain_where_a_class_scales(
    scaling: dict[str, Any], tokenizer: Path, tmp_path: Path
) -> None:
    """transformers scales where a config is silent: one that is made of a file says that nothing
    is scaled."""
    source = written("gpt_oss", tokenizer, tmp_path / "source", head_dim=32, rope_scaling=scaling)
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    expected = runs.in_transformers(source, TEXT)
    assert gap(runs.in_llamacpp(tmp_path / "m.gguf", TEXT), expected) < 1e-3
    assert gap(runs.in_transformers(tmp_path / "back", TEXT), expected) < 1e-3


def test_a_base_of_rotations_beside_their_parameters(tokenizer: Path, tmp_path: Path) -> None:
    """transformers takes that of the parameters, and so do older spellings that are written."""
    told = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
    source = written(
        "qwen3", tokenizer, tmp_path / "source", head_dim=16, rope_theta=1e6, rope_parameters=told
    )
    convert(source, tmp_path / "hf", "hf:f32")
    expected = runs.in_transformers(source, TEXT)
    assert gap(runs.in_transformers(tmp_path / "hf", TEXT), expected) < 1e-4
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["rope_theta"] == 100.0


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("exaone4", {"head_dim": 16, "sliding_window": 8}, "no layer rotates"),
        ("gemma4_e2b", {"num_kv_shared_layers": 1}, "shares keys and values"),
        ("deepseek_v3", {"topk_group": 1}, "as many as a token asks"),
        ("deepseek_v3", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, "no such scal"),
    ],
)
def test_what_llamacpp_computes_otherwise(
    name: str, fields: dict[str, Any], why: str, tokenizer: Path, tmp_path: Path
) -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    config = {**FAMILIES[name].config, **sizes, **fields}
    source = runs.write_model(tmp_path / "source", config, tokenizer, seed=1)
    with pytest.raises(PlanError, match=why):
        plan(source, "gguf:f32")
    if name == "exaone4":
        with pytest.raises(Unsupported, match=why):
            plan(source, "onnx:f32")


def test_an_original_context_that_nothing_says(tokenizer: Path, tmp_path: Path) -> None:
    """transformers takes the context for it, and llama.cpp's converter 8,192."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    }  # fmt: skip
    source = written(
        "llama3", tokenizer, tmp_path / "source", head_dim=16, rope_theta=100.0,
        rope_scaling=scaling, max_position_embeddings=64,
    )  # fmt: skip
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    expected = runs.in_transformers(source, TEXT)
    assert gap(runs.in_llamacpp(tmp_path / "m.gguf", TEXT), expected) < 1e-3


def test_scores_that_a_file_multiplies_twice(tokenizer: Path, tmp_path: Path) -> None:
    """What llama.cpp computes with DeepSeek's YaRN without ``mscale`` has no config."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    config = {**FAMILIES["deepseek_v3"].config, "vocab_size": runs.VOCAB, "rope_scaling": scaling}
    source = runs.write_model(tmp_path / "source", config, tokenizer, seed=1)
    assert [fact.name for fact in plan(source, "gguf:f32").lost] == ["rope_scaling.mscale"]
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    with pytest.raises(PlanError, match="yarn_log_multiplier"):
        plan(tmp_path / "m.gguf", "hf:f32")
    assert plan(tmp_path / "m.gguf", "gguf:f32").exact
