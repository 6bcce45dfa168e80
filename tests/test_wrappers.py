"""Models that see: the language model is converted alone, as llama.cpp's converter does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import FAMILIES
from tests.oracles import converter
from tests.test_llamacpp_parity import assert_same_file
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import PlanError, UsageError

PREFIXES = {"4": ("language_model.model.", ""), "5": ("model.language_model.", "model.")}
"""What transformers of that version begins names with: of the language model, of what sees."""


@dataclass(frozen=True)
class Seeing:
    """A model type with a vision tower."""

    family: str
    """Of the language model."""
    model_type: str
    architecture: str
    gguf: str
    silent: tuple[str, ...] = ("architectures",)
    """Keys that its ``text_config`` leaves out."""
    towers: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    """What stands beside the language model."""


MODELS = [
    Seeing(
        "gemma3", "gemma3", "Gemma3ForConditionalGeneration", "gemma3",
        ("architectures", "max_position_embeddings"),
    ),
    Seeing("ministral3", "mistral3", "Mistral3ForConditionalGeneration", "mistral3"),
    Seeing("mistral", "mistral3", "Mistral3ForConditionalGeneration", "mistral3"),
    Seeing(
        "gemma4", "gemma4", "Gemma4ForConditionalGeneration", "gemma4",
        towers=("vision_tower", "embed_vision"),
    ),
]  # fmt: skip
MODELS += [
    Seeing(
        name,
        name,
        f"{architecture}ForConditionalGeneration",
        name,
        towers=("visual",),
    )
    for name, architecture in (("qwen3_5", "Qwen3_5"), ("qwen3_5_moe", "Qwen3_5Moe"))
]
CASES = [(MODELS[0], "4"), (MODELS[0], "5"), (MODELS[1], "5"), (MODELS[2], "4")]
CASES += [(model, "5") for model in MODELS[3:]]


def seeing(model: Seeing, version: str, folder: Path) -> tuple[str, ...]:
    """A random model, and the names of what stands beside its language model."""
    folder.mkdir()
    family = FAMILIES[model.family]
    vocab = MAKERS[family.tokenizer](folder)
    inner: dict[str, Any] = {**family.config, "num_hidden_layers": 2}
    if "layer_types" in inner:
        inner["layer_types"] = inner["layer_types"][-2:]
    if inner.get("sliding_window") is not None and model.model_type == "mistral3":
        inner["sliding_window"] = None  # as released; llama.cpp has none
    bos, eos = (2, 1) if family.tokenizer.startswith("gemma") else (1, 2)
    raw_model(folder, inner, vocab_size=vocab, bos_token_id=bos, eos_token_id=eos)
    text = json.loads((folder / "config.json").read_text())
    config = {
        "architectures": [model.architecture],
        "model_type": model.model_type,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "text_config": {k: v for k, v in text.items() if k not in model.silent},
        "vision_config": {"hidden_size": 32, "model_type": "siglip_vision_model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (language, others) = PREFIXES[version]
    head = "language_model." if version == "4" else ""
    tensors = {
        language + name.removeprefix("model.") if name.startswith("model.") else head + name: value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    towers = [others + tower for tower in model.towers]
    tensors |= {f"{tower}.norm.weight": torch.ones(32) for tower in towers}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tuple(f"{tower} (1 tensor)" for tower in towers)


@pytest.mark.parametrize(("model", "version"), CASES, ids=lambda case: getattr(case, "family", ""))
def test_the_language_model_is_converted_alone(model: Seeing, version: str, tmp_path: Path) -> None:
    """The file is the converter's; without being asked for it is refused."""
    folder = tmp_path / "tiny"
    beside = seeing(model, version, folder)
    with pytest.raises(PlanError, match="only the language model can be converted"):
        plan(folder, "gguf:bf16")
    options, family = Options(text_only=True), FAMILIES[model.family]
    done = convert(folder, tmp_path / "ours.gguf", "gguf:bf16", options=options)
    assert {fact.value for fact in done.plan.lost} == set(beside)
    theirs = tmp_path / "theirs.gguf"
    converter.convert(folder, theirs, "bf16", family.pre, *family.converter)
    assert_same_file(tmp_path / "ours.gguf", theirs)
    inner = FAMILIES[model.family].config
    for start, name in ((folder, "alone"), (tmp_path / "ours.gguf", "back")):
        given = options if start == folder else Options()
        convert(start, tmp_path / name, "hf:bf16", options=given)
        alone = open_checkpoint(tmp_path / name)
        assert alone.config["model_type"] == inner["model_type"]
        assert alone.config["architectures"] == inner["architectures"]
        assert not alone.beside
    with pytest.raises(UsageError, match="nothing else"):
        plan(tmp_path / "alone", "gguf:bf16", options=options)
