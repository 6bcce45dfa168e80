"""onnxruntime-genai draws what transformers draws with the same generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.onnx_runs import SPECIAL
from tests.tiny import raw_model
from tests.tokenizers_for_tests import llama3
from zenconvert import convert, plan

PROMPT = [3, 4, 5]
LENGTH = 40
VOCAB = 320


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    folder.mkdir()
    llama3(folder, VOCAB)
    special = {**SPECIAL, "vocab_size": VOCAB}
    return raw_model(folder, "qwen2", dtype="f32", max_position_embeddings=LENGTH, **special)


def in_transformers(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = model.generate(torch.tensor([PROMPT]), max_length=LENGTH)
    return [int(token) for token in found[0]]


def in_genai(folder: Path) -> list[int]:
    model = genai.Model(str(folder))
    generator = genai.Generator(model, genai.GeneratorParams(model))
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eos_token_id": "tenth"},
        {"eos_token_id": ["tenth", 2]},
        {"eos_token_id": [2, "tenth", VOCAB + 7]},
        {"eos_token_id": None},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": None, "temperature": None, "top_k": None},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": "tenth", "min_length": 20},
        {"do_sample": True, "top_k": 1},
        {"do_sample": False, "temperature": 0.4, "min_p": 0.2, "typical_p": 0.5},
        {"top_k": 0},
        {"top_k": VOCAB + 200},
        {"pad_token_id": VOCAB + 1},
        {"num_beams": 1, "early_stopping": "never", "num_return_sequences": 1},
        {"early_stopping": False, "max_new_tokens": 5000, "transformers_version": "5.0"},
    ],
    ids=str,
)
def test_the_same_tokens(settings: dict[str, Any], source: Path, tmp_path: Path) -> None:
    file = source / "generation_config.json"
    file.write_text("{}")
    tenth = in_transformers(source)[10]
    text = json.dumps(settings).replace('"tenth"', str(tenth))
    file.write_text(text)
    convert(source, tmp_path / "out", "onnx:f32")
    assert (tmp_path / "out" / file.name).read_text() == text
    found = in_genai(tmp_path / "out")
    if "max_new_tokens" in settings:
        file.write_text("{}")
    expected = in_transformers(source)
    if len(expected) < LENGTH and expected[-1] == tenth:
        expected.pop()  # genai does not show the end of a text
    assert found == expected


def test_what_the_runtime_lacks_is_named(source: Path) -> None:
    settings = {
        "eos_token_id": [2, VOCAB + 7], "min_p": 0.2, "suppress_tokens": [3], "temperature": 0.5,
        "num_beams": 1, "bad_words_ids": [],
    }  # fmt: skip
    (source / "generation_config.json").write_text(json.dumps(settings))
    facts = [f for f in plan(source, "onnx:f32").facts if f.name.startswith("generation_config.")]
    found = {(f.name.removeprefix("generation_config."), f.place, f.exact) for f in facts}
    kept = "generation_config.json"
    assert found == {
        ("eos_token_id", kept, True),
        ("eos_token_id", "genai_config.json: model.eos_token_id", True),
        ("min_p", kept, True),
        ("suppress_tokens", kept, False),
        ("temperature", "genai_config.json: search.temperature", True),
        ("num_beams", "genai_config.json: search.num_beams", True),
        ("bad_words_ids", "", True),
    }
