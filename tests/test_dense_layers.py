"""Mixtures some of whose layers have one network in place of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.calib.whole_models import whole_model
from tests.differential import runs
from tests.families import FAMILIES
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import InvalidInput, PlanError
from zenconvert.model.architecture import for_model_type
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

CASES: dict[str, dict[str, Any]] = {
    "a list": {"mlp_only_layers": [1, 2], "decoder_sparse_step": 1},
    "a period": {"mlp_only_layers": [], "decoder_sparse_step": 2},
    "both": {"mlp_only_layers": [3], "decoder_sparse_step": 2},
}
DENSE = {"a list": (1, 2), "a period": (0, 2), "both": (0, 2, 3)}


def model(case: str, folder: Path, family: str = "qwen3_moe") -> Path:
    """A random mixture of four layers, of sizes that groups of 32 divide."""
    folder.mkdir()
    vocab = MAKERS["qwen2"](folder)
    whole_model(
        family, folder, vocab_size=vocab, intermediate_size=96, moe_intermediate_size=32,
        **CASES[case],
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers_and_a_copy_is_exact(
    case: str, family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    source = model(case, tmp_path / "model", family)
    checkpoint = open_checkpoint(source)
    assert checkpoint.hyperparameters.dense_layers == DENSE[case]
    ids = tuple(np.random.default_rng(1).integers(3, 900, 40).tolist())
    windows = [Window("a", "en", ids)]
    engine = TorchEngine(checkpoint, windows, device="cpu", progress=lambda done, total: None)
    whole = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = whole(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(engine.logits(0, 0, 40), expected, rtol=0, atol=1e-4)
    convert(source, tmp_path / "copy", "hf:f32")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name], err_msg=name)


@pytest.mark.parametrize("target", ["gptq:w4g32", "awq:w4g32"])
def test_solvers_take_the_linear_modules_of_both_kinds(target: str, tmp_path: Path) -> None:
    source = model("a period", tmp_path / "model")
    samples = Calibrating(languages=["en"], tokens_per_language=300, context=64)
    done = convert(source, tmp_path / "packed", target, calibrating=samples)
    names = {".".join(name.split(".")[1:3]) for name in done.modules if "attn" not in name}
    assert names == {"0.ffn", "2.ffn", "1.moe", "3.moe"}
    convert(tmp_path / "packed", tmp_path / "decoded", "hf:f32")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "decoded" / "model.safetensors")
    assert before.keys() == after.keys()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weights of experts that are normalised": ({"norm_topk_prob": True}, "norm_topk_prob is True"),
    "a head that is the embedding": ({"tie_word_embeddings": True}, "a head of their own"),
    "windows": ({"use_sliding_window": True}, "use_sliding_window is True"),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "dense layers": ({"mlp_only_layers": [1]}, "qwen2moe graph has experts in every layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_llamacpp_computes_mixtures_with_a_shared_expert_in_one_way(
    case: str, tmp_path: Path
) -> None:
    changes, reason = REFUSED[case]
    vocab = MAKERS["qwen2"](raw_model(tmp_path, "qwen2"))
    raw_model(tmp_path, {**FAMILIES["qwen2_moe"].config, **changes}, vocab_size=vocab, biases=True)
    with pytest.raises(PlanError, match=reason):
        plan(tmp_path, "gguf:bf16")


@pytest.mark.parametrize(("case", "key"), [("a list", "mlp_only"), ("a period", "decoder_sparse")])
def test_llamacpp_has_experts_in_every_layer(case: str, key: str, tmp_path: Path) -> None:
    source = model(case, tmp_path / "model")
    with pytest.raises(PlanError, match=rf"{key}_\w+ is .* has experts in every layer"):
        plan(source, "gguf:bf16")


@pytest.mark.parametrize("target", ["onnx:f32", "onnx:f32-standard", "onnx:int4-acc0"])
@pytest.mark.parametrize("case", CASES)
def test_graphs_have_both_kinds_of_layers(case: str, target: str, tmp_path: Path) -> None:
    source = model(case, tmp_path / "model")
    ids = np.random.default_rng(1).integers(3, 900, 40).tolist()
    convert(source, tmp_path / "onnx", target)
    convert(tmp_path / "onnx", tmp_path / "back", "hf:f32")
    expected = runs.in_transformers(tmp_path / "back", ids)
    found = runs.in_onnxruntime(tmp_path / "onnx", ids)
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    if target != "onnx:int4-acc0":
        for name, values in before.items():
            np.testing.assert_array_equal(values, after[name], err_msg=name)


def test_a_list_of_something_else_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="mlp_only_layers should be a list of layers"):
        for_model_type("qwen3_moe").sizes(
            {
                "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 96, "vocab_size": 300, "mlp_only_layers": ["1"],
            },
            where="test",
        )  # fmt: skip
