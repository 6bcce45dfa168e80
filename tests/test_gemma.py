"""Gemma 2 and 3: run, measured and quantized as transformers computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.calib.whole_models import FAMILIES, whole_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint, verify
from zenconvert.errors import Unsupported, ZenError
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
        max_position_embeddings=128,
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


def test_a_copy_is_exact_and_what_cannot_be_written_is_refused(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "copy", "hf:f32")
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "copy")
    assert before.tensors.keys() == after.tensors.keys()
    for target in ("gguf:bf16", "onnx:f32"):
        with pytest.raises(ZenError) as refused:
            convert(source, tmp_path / "no", target)
        assert isinstance(refused.value, Unsupported) or "gemma" in str(refused.value)
        assert not (tmp_path / "no").exists()
