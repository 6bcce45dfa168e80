"""Model names are taken apart as gguf-py does it."""

from __future__ import annotations

import gguf
import pytest

from zenconvert.formats.gguf import model_name as naming

NAMES = [
    "Qwen1.5-110B-Chat", "Qwen/Qwen1.5-110B", "Meta-Llama-3-70B-Instruct", "Mixtral-8x22B-v0.1",
    "mistralai/Mixtral-8x7B-Instruct-v0.1", "zen-nano", "Llama-2-7b-hf", "phi-3-mini-4k-instruct",
    "bloom-7b1", "bloom-7b1-petals", "tinyllama-1.1b-chat-v1.0", "gpt2", "Model", "a-b-c-d",
    "Phi-3-medium-128k-instruct", "deepseek-coder-6.7b-base-q4_k", "some model with spaces",
    "NousResearch/Hermes-2-Pro-8B-f16", "./local", "../up-7B", "model--double-7B", "v2", "v2-7B",
    "7B", "x-7B-7B", "Yi-1_5-34B", "base-small-1B", "org/name/extra-7B", "Iter3-model-2B", "-",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parameters", [0, 7_000_000_000, 110_000_000_000, 9_000_000])
def test_components(name: str, parameters: int) -> None:
    parts = naming.parse(name, parameters)
    found = (
        parts.name, parts.organization, parts.basename, parts.finetune, parts.version,
        parts.size_label,
    )  # fmt: skip
    assert found == gguf.Metadata.get_model_id_components(name, parameters)


@pytest.mark.parametrize("name", NAMES)
def test_titles(name: str) -> None:
    assert naming.title(name) == gguf.Metadata.id_to_title(name)


@pytest.mark.parametrize(
    "count", [1, 999, 1000, 9_437_184, 999_600_000, 1_000_000_001, 110e9, 3e12]
)
@pytest.mark.parametrize("experts", [0, 8])
def test_size_labels(count: float, experts: int) -> None:
    total, shared, one = int(count), int(count) // 3, int(count) // 7
    expected = gguf.size_label(total, shared, one, experts)
    assert naming.size_label(total, shared, one, experts) == expected
