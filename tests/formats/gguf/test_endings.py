"""llama.cpp says at which tokens it ends a text: those at which transformers does, and back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import llama_cpp
import pytest
from transformers import AutoConfig, GenerationConfig

from tests.differential import runs
from zenconvert import convert, plan
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.endings import endings

NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "</s>", "<eos>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|eom_id|>", "<|tool_response>",
    "<|endoftext|>", "<|stop|>", "<|done|>", "<end>",
)  # fmt: skip


def ended_by_llamacpp(file: Path) -> set[int]:
    """Every token that ends a text."""
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    found = {token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocab, token)}
    model.close()
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


def model(folder: Path, plain: Path, rng: random.Random) -> list[int]:
    """A folder whose tokenizer has some of the names; the ids at which texts are to end."""
    definition = json.loads((plain / "tokenizer.json").read_text())
    names = rng.sample(NAMES, rng.randint(0, 8))
    for number, name in enumerate(names, runs.VOCAB):
        token = {"id": number, "content": name, "special": rng.random() < 0.7}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        definition["added_tokens"].append({**token, **flags})
    vocab = runs.VOCAB + len(names)
    config = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": vocab,
        "max_position_embeddings": 64, "torch_dtype": "float32", "rope_theta": 10000.0,
    }  # fmt: skip
    ends = rng.sample(range(vocab), rng.randint(1, 4))
    said = ends if len(ends) > 1 or rng.random() < 0.5 else ends[0]
    source = runs.write_model(folder, config, plain, 0)
    (source / "tokenizer.json").write_text(json.dumps(definition))
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder")
    if rng.random() < 0.3:
        settings.pop("eos_token")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    if rng.random() < 0.7 or isinstance(said, int):
        (source / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
        said = 5
    if said != 5 or rng.random() < 0.5:
        (source / "config.json").write_text(json.dumps({**config, "eos_token_id": said}))
    return ends


@pytest.mark.parametrize("seed", range(24))
def test_texts_end_where_they_ended(seed: int, plain: Path, tmp_path: Path) -> None:
    ends = model(tmp_path / "source", plain, random.Random(seed))
    assert ends_of(tmp_path / "source") == set(ends)
    planned = plan(tmp_path / "source", "gguf:f32")
    lost = {fact.value for fact in planned.lost}
    convert(tmp_path / "source", tmp_path / "m.gguf", "gguf:f32")
    found = ended_by_llamacpp(tmp_path / "m.gguf")
    assert found == set(endings(container.read(tmp_path / "m.gguf").metadata))
    assert set(ends) - found == lost
    assert not lost or len(ends) > 2  # the ends of a turn and of a message may be named
    told = {n for f in planned.facts if "as well" in f.why for n in f.value}
    assert found - set(ends) == told
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    assert ends_of(tmp_path / "back") == found
    convert(tmp_path / "back", tmp_path / "again.gguf", "gguf:f32")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def ends_of(folder: Path) -> set[int]:
    """At which tokens transformers ends a text."""
    try:
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # no such file
        config = AutoConfig.from_pretrained(folder)
        found = GenerationConfig.from_model_config(config).eos_token_id
    return set(found if isinstance(found, list) else [found])
