"""What a graph depends on beside weights: rotations, windows, special tokens, known families."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.onnx_runs import variant, with_tokenizer
from tests.tiny import CONFIGS, raw_model
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import PlanError, Unsupported, UsageError
from zenconvert.formats.onnx import rotary
from zenconvert.formats.onnx.write import writer
from zenconvert.model.architecture import for_model_type
from zenconvert.model.encoding import F16, F32
from zenconvert.model.hyperparameters import Hyperparameters

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn, given": {
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16,
        "beta_slow": 2,
        "attention_factor": 1.25,
        "truncate": False,
    },
    "yarn, two scales": {
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
    },
}


def sizes(config: dict[str, Any]) -> Hyperparameters:
    return for_model_type(config["model_type"]).sizes(config, where="test")


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    kind = name.partition(",")[0]
    theirs = {"rope_type": kind, "rope_theta": 500000.0, **SCALINGS[name]}
    fields = {k: v for k, v in CONFIGS["llama3"].items() if k not in {"model_type", "rope_scaling"}}
    config = AutoConfig.for_model("llama", **{**fields, "rope_parameters": theirs})
    found, amplitude = rotary.frequencies(sizes({**CONFIGS["llama3"], "rope_scaling": theirs}))
    if kind == "default":
        exponents = torch.arange(0, 64, 2, dtype=torch.float32) / 64
        expected, factor = 1.0 / (500000.0**exponents), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    np.testing.assert_array_equal(found, expected.numpy())
    assert amplitude == pytest.approx(factor)


def test_tables_hold_every_position_in_the_type_of_the_graph() -> None:
    hp = sizes(CONFIGS["qwen2"])
    table = rotary.Table(rotary.TABLES, hp)
    cosines, sines = rotary.values_of(table, F32)
    assert cosines.shape == sines.shape == (256, 32)
    np.testing.assert_allclose(cosines**2 + sines**2, 1, atol=1e-6)
    np.testing.assert_array_equal(rotary.values_of(table, F16)[0], cosines.astype(np.float16))


def test_rotations_that_depend_on_the_text_are_refused() -> None:
    hp = replace(sizes(CONFIGS["qwen2"]), rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(Unsupported, match="type 'dynamic'"):
        rotary.frequencies(hp)


def test_families_and_activations_without_a_graph_are_refused_by_name(tmp_path: Path) -> None:
    raw_model(tmp_path / "gelu", "qwen2", hidden_act="gelu")
    with pytest.raises(PlanError, match="hidden_act is 'gelu'"):
        convert(tmp_path / "gelu", tmp_path / "out", "onnx:f32")
    checkpoint = open_checkpoint(raw_model(tmp_path / "model", "qwen2"))
    modules = tuple(m for m in checkpoint.architecture.modules if not m.name.endswith("attn_norm"))
    strange = replace(checkpoint.architecture, id="strange", modules=modules)
    with pytest.raises(Unsupported, match="strange models cannot be written as ONNX"):
        writer.check_family(replace(checkpoint, architecture=strange), sinks=True)


def test_genai_learns_the_special_tokens_and_the_settings_of_sampling(tmp_path: Path) -> None:
    overrides = {"max_position_embeddings": 512, "pad_token_id": None}
    source = with_tokenizer(tmp_path / "source", "llama3", **overrides)
    settings = {"eos_token_id": [5, 6], "temperature": 0.5, "top_k": 7, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "out", "onnx:f32")
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [5, 6]
    assert genai["model"]["pad_token_id"] == 5
    assert genai["model"]["bos_token_id"] == 1
    assert genai["model"]["type"] == "llama"
    assert genai["search"]["temperature"] == 0.5
    assert genai["search"]["top_k"] == 7
    assert genai["search"]["max_length"] == 512
    convert(variant(tmp_path / "moe", "mixtral"), tmp_path / "out2", "onnx:f32-standard")
    genai = json.loads((tmp_path / "out2" / "genai_config.json").read_text())
    assert genai["model"]["type"] == "decoder"
    assert genai["search"]["past_present_share_buffer"] is False


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    source = raw_model(tmp_path / "model", "qwen2")
    for options, reason in (
        (Options(pure=True), "--pure"),
        (Options(pre_tokenizer="x"), "--pre"),
        (Options(output_type="int4-standard"), "cannot be stored as 'int4-standard'"),
        (Options(embedding_type="own"), "cannot be stored as 'own'"),
    ):
        with pytest.raises(UsageError, match=reason):
            convert(source, tmp_path / "out", "onnx:int4", options=options)
