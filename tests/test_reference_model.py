"""The bundled model is what its card says, and really knows its ten languages."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from zenconvert import inspect, open_checkpoint
from zenconvert.errors import SourceNotFound
from zenconvert.models import BUILTIN, builtin_path
from zenconvert.texts.samples import LANGUAGES, load_bundled

FOLDER = builtin_path("zen-nano")
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_has_the_shape_of_the_large_model_in_small() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert config["hidden_size"] % 256 == 0
    assert config["intermediate_size"] % 256 == 0
    assert config["tie_word_embeddings"] is False
    assert (FOLDER / "model.safetensors").stat().st_size <= 20_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert "model.layers.0.self_attn.q_proj.bias" in file.keys()  # noqa: SIM118
        assert "lm_head.weight" in file.keys()  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert f"{inspect('builtin:zen-nano').parameters:,}" in CARD


def test_its_tokenizer_cuts_as_qwen2_does() -> None:
    checkpoint = open_checkpoint("builtin:zen-nano")
    assert checkpoint.tokenizer.rule == "qwen2"
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_card_keeps_what_was_promised() -> None:
    """Perplexity below 120 overall and below 400 in every language, data and steps named."""
    head, values = re.findall(r"^\| (en .*?|\d.*?\d) \|$", CARD, re.MULTILINE)[-2:]
    table = dict(zip(head.split(" | "), map(float, values.split(" | ")), strict=True))
    assert set(table) == {*LANGUAGES, "overall"}
    assert table["overall"] < 120
    assert max(table.values()) < 400
    for word in ("huggingface/course", "CC-BY-4.0", "step 2,500", "train_reference.py"):
        assert word in CARD


def test_it_predicts_text_it_has_never_seen() -> None:
    """A model of random weights has a perplexity of 8,192 here, a language not learnt thousands."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for language in LANGUAGES:
        total, count = 0.0, 0
        for sample in load_bundled("evaluation", [language])[:3]:
            ids = torch.tensor([tokenizer.encode(sample.content)])
            with torch.inference_mode():
                loss = model(ids, labels=ids).loss
            total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
        assert math.exp(total / count) < 1500, language


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_names_are_sources(name: str) -> None:
    assert open_checkpoint(f"builtin:{name}").architecture.id == "qwen2"


def test_an_unknown_builtin_is_named() -> None:
    with pytest.raises(SourceNotFound, match="zen-nano"):
        open_checkpoint("builtin:zen-mega")
