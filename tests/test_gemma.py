"""Gemma 2 and 3: run, measured and quantized as transformers computes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from tests.calib.whole_models import FAMILIES, whole_model
from tests.differential import runs
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint, plan, verify
from zenconvert.errors import PlanError
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

TYPES = ["gemma2", "gemma3_text"]


@pytest.fixture(scope="module", params=TYPES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer, of groups of 32."""
    assert request.param in FAMILIES
    folder = tmp_path_factory.mktemp(request.param) / "model"
    folder.mkdir()
    vocab = MAKERS["llama3"](folder)
    whole_model(
        request.param, folder, vocab_size=vocab, intermediate_size=128, tie_word_embeddings=True,
        max_position_embeddings=128, query_pre_attn_scalar=16,
    )  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if "layernorm" in name:
            value[::8] += 4  # channels that scales are for
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Longer than the window."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The ferry leaves at nine, and nobody waits for it. " * 6)
    return path


def test_logits_are_those_of_transformers(source: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = tuple(np.random.default_rng(1).integers(3, 900, 60).tolist())
    engine = TorchEngine(
        open_checkpoint(source), [Window("a", "en", ids)], device="cpu",
        progress=lambda done, total: None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(engine.logits(0, 0, 60), expected, rtol=0, atol=1e-4)


def test_what_is_quantized_computes_nearly_the_same(
    source: Path, text: Path, tmp_path: Path
) -> None:
    """A scale folded into a norm as if it multiplied by its weight would be far off."""
    drift: dict[str, float] = {}
    samples = Calibrating(languages=["en", "fr"], tokens_per_language=1024, context=64)
    for target in ("gptq:w4g32", "awq:w4g32"):
        out = tmp_path / target.partition(":")[0]
        convert(source, out, target, calibrating=samples)
        drift[target] = verify(source, out, text=text).overall.kl_mean
    convert(source, tmp_path / "nearest", "gptq:w4g32")
    nearest = verify(source, tmp_path / "nearest", text=text).overall.kl_mean
    assert nearest > 0
    assert drift["gptq:w4g32"] < nearest
    assert drift["awq:w4g32"] < nearest


def test_a_copy_is_exact(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "copy", "hf:f32")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "copy")
    assert before.tensors.keys() == after.tensors.keys()


def test_norms_that_round_are_told(source: Path, tmp_path: Path) -> None:
    """float32 weights do not come back from 1 + w; runtimes add the 1 themselves, so they see the
    same numbers."""
    made = plan(source, "gguf:f32")
    steps = {step.target: step for step in made.steps}
    norm = steps["blk.0.attn_norm.weight"]
    assert not made.exact
    assert not norm.exact
    assert "numbers cannot come back" in norm.why
    assert steps["blk.0.attn_q.weight"].exact
    with pytest.raises(PlanError, match=r"1 \+ w is rounded to f32"):
        plan(source, "gguf:f32", exact=True)
    convert(source, tmp_path / "out.gguf", "gguf:f32")
    weights = load_file(source / "model.safetensors")
    reader = GGUFReader(tmp_path / "out.gguf")
    stored = {t.name: t.data for t in reader.tensors}
    for name, place in {
        "model.norm": "output_norm",
        "model.layers.1.input_layernorm": "blk.1.attn_norm",
        "model.layers.1.post_attention_layernorm": "blk.1.post_attention_norm",
        "model.layers.1.pre_feedforward_layernorm": "blk.1.ffn_norm",
        "model.layers.1.post_feedforward_layernorm": "blk.1.post_ffw_norm",
    }.items():
        expected = 1.0 + weights[f"{name}.weight"].float()
        np.testing.assert_array_equal(stored[f"{place}.weight"], expected.numpy())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another scale of scores": ({"query_pre_attn_scalar": 24}, "query_pre_attn_scalar"),
    "another function": ({"hidden_activation": "relu"}, "hidden_activation"),
    "a text seen from both sides": ({"use_bidirectional_attention": True}, "bidirectional"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_llamacpp_computes_otherwise_is_refused(
    case: str, source: Path, tmp_path: Path
) -> None:
    changes, message = WRONG[case]
    folder = changed(source, tmp_path, **{"query_pre_attn_scalar": 16, **changes})
    with pytest.raises(PlanError, match=message):
        plan(folder, "gguf:f32")


def changed(source: Path, tmp_path: Path, **changes: Any) -> Path:
    """The model with other values in its config."""
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_other_patterns_of_windows_get_a_key_that_llamacpp_reads(
    source: Path, tmp_path: Path
) -> None:
    """The converter writes none, and llama.cpp would slide in other layers."""
    layers = open_checkpoint(source).hyperparameters.layers
    types = ["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(layers)]
    folder = changed(source, tmp_path, layer_types=types, query_pre_attn_scalar=16)
    convert(folder, tmp_path / "out.gguf", "gguf:f32")
    text = np.random.default_rng(3).integers(3, 900, 60).tolist()
    expected = runs.in_transformers(folder, text)
    found = runs.in_llamacpp(tmp_path / "out.gguf", text)
    usual = np.linalg.norm(runs.in_transformers(source, text) - expected)
    assert np.linalg.norm(found - expected) < 0.02 * usual  # its GELU is a table of float16
    convert(tmp_path / "out.gguf", tmp_path / "back", "hf:f32")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["layer_types"] == types
