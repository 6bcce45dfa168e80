"""Configs as people have them: what one version of a runtime computes is called exact only where
every version does, and what a file says comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.differential import runs
from tests.families import FAMILIES
from zenconvert import convert, plan

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": runs.VOCAB,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, **SIZES,
}  # fmt: skip
TEXT = runs.ids(40, 7)
Made = Callable[[dict[str, Any]], Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A folder of random weights for a config."""
    runs.tokenizer(tmp_path / "tokenizer")
    return lambda config: runs.write_model(tmp_path / "source", config, tmp_path / "tokenizer", 3)


OLMO3 = {
    key: value
    for key, value in {**FAMILIES["olmo3"].config, **SIZES, "sliding_window": 8}.items()
    if key != "rope_scaling"
}
_PLAIN = {"rope_type": "default"}


@pytest.mark.parametrize("target", ["gguf:f32", "onnx:f32"])
@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"rope_theta": 5e5}, False),
        ({"rope_theta": 1e4}, True),
        ({"rope_theta": 1e6, "rope_parameters": {"full_attention": _PLAIN}}, True),
        ({"rope_theta": 1e6, "layer_types": ["full_attention"] * 8}, False),
    ],
)
def test_a_base_that_versions_take_for_other_layers_is_named(
    target: str, changes: dict[str, Any], differs: bool, made: Made, tmp_path: Path
) -> None:
    """Of OLMo 3: transformers 4 rotates layers that slide by it, 5 by 500000."""
    source = made({**OLMO3, **changes})
    planned = plan(source, target)
    assert [fact.name for fact in planned.lost] == ["rope_theta"] * differs
    if target == "gguf:f32":
        convert(source, tmp_path / "m.gguf", target)
        found = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
        off = float(np.abs(found - runs.in_transformers(source, TEXT)).max())
        assert (off > 1e-2) == differs


@pytest.mark.parametrize("context", [32, 64, 128])
def test_factors_of_short_contexts_come_back(context: int, made: Made, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }  # fmt: skip
    source = made({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling})
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    found = runs.in_transformers(tmp_path / "back", TEXT)
    np.testing.assert_allclose(found, runs.in_transformers(source, TEXT), atol=1e-5, rtol=0)


def test_keys_of_released_models_that_nothing_reads(made: Made) -> None:
    """Of SmolLM, Vicuna, DeepSeek LLM and InternLM's Llama."""
    known = {
        "is_llama_config": True, "rope_interleaved": False, "max_sequence_length": 2048,
        "aux_loss_alpha": 0.001, "seq_aux": True, "bias": False, "pretraining_tp": 1,
    }  # fmt: skip
    source = made({**LLAMA, **known})
    assert plan(source, "gguf:f32").exact
    assert plan(source, "onnx:f32").exact
