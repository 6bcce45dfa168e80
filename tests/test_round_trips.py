"""GGUF → HF → GGUF gives the same bytes, and the HF folder in between is a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zenconvert import Options, convert, diff, open_checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.llamacpp import LlamaCppEngine
from zenconvert.verification.engines.torch_engine import TorchEngine

Family = Callable[[str], Path]
Gguf = Callable[[str, str], Path]
SOURCES = ("builtin:zen-nano", "llama3", "mistral", "mixtral")
IDS = tuple(np.random.default_rng(0).integers(3, 1000, 48).tolist())


def transformers_logits(folder: Path) -> np.ndarray:
    """float32[tokens, vocab] of transformers' own loading of a folder."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: np.ndarray = loaded.eval()(torch.tensor([IDS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("source", SOURCES)
def test_logits_of_llamacpp_are_those_of_transformers(
    source: str, model: Family, gguf: Gguf
) -> None:
    folder = open_checkpoint(source).path if ":" in source else model(source)
    engine = LlamaCppEngine(
        open_checkpoint(gguf(source, "f32")), [Window("a", "und", IDS)], threads=2
    )
    found = engine.logits(0, 0, len(IDS)).numpy()
    engine.close()
    np.testing.assert_allclose(found, transformers_logits(folder), atol=1e-3, rtol=0)


@pytest.mark.parametrize("source", SOURCES)
def test_gguf_to_hf_and_back_gives_the_same_bytes(source: str, gguf: Gguf, tmp_path: Path) -> None:
    first = gguf(source, "f32")
    convert(first, tmp_path / "hf", "hf:f32")
    convert(tmp_path / "hf", tmp_path / "second.gguf", "gguf:f32")
    assert (tmp_path / "second.gguf").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("source", ["builtin:zen-nano", "llama3", "mixtral"])
def test_a_decoded_gguf_loads_in_transformers(source: str, gguf: Gguf, tmp_path: Path) -> None:
    """Logits of the folder are those of the decoded blocks."""
    quantized = gguf(source, "q4_k_m")
    convert(quantized, tmp_path / "hf", "hf:f32")
    engine = TorchEngine(
        open_checkpoint(quantized),
        [Window("a", "und", IDS)],
        device="cpu",
        progress=lambda done, total: None,
    )
    np.testing.assert_allclose(
        transformers_logits(tmp_path / "hf"), engine.logits(0, 0, len(IDS)), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("source", ["builtin:zen-nano", "mistral"])
def test_decoded_weights_are_those_that_transformers_reads(
    source: str, gguf: Gguf, tmp_path: Path
) -> None:
    """transformers has its own GGUF reader, by way of the gguf package's decoders."""
    quantized = gguf(source, "q4_k_m")
    convert(quantized, tmp_path / "hf", "hf:f32")
    theirs = AutoModelForCausalLM.from_pretrained(
        quantized.parent, gguf_file=quantized.name, dtype=torch.float32
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_hf_dtypes_hold_the_rounded_weights(dtype: str, gguf: Gguf, tmp_path: Path) -> None:
    convert(gguf("qwen2", "q8_0"), tmp_path / "f32", "hf:f32")
    convert(gguf("qwen2", "q8_0"), tmp_path / f"hf-{dtype}", f"hf:{dtype}")
    kind = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "f32", dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / f"hf-{dtype}", dtype="auto")
    assert found.dtype == kind
    for name, values in found.state_dict().items():
        assert torch.equal(values, full.state_dict()[name].to(kind)), name


def test_what_hf_has_no_place_for_comes_back(gguf: Gguf, tmp_path: Path) -> None:
    """Keys of a GGUF file that no config holds survive the way through an HF folder."""
    from zenconvert.formats.gguf import container

    source = container.read(gguf("llama3", "f32"))
    extra = {
        "general.description": ("str", "тест"),
        "general.tags": ("arr:str", ["a", "b"]),
        "tokenizer.ggml.fim_pre_token_id": ("u32", 7),
        "custom.number": ("f64", 0.1),
        "custom.numbers": ("arr:i16", np.array([-1, 2], dtype=np.int16)),
    }
    data = source.path.read_bytes()
    rows, at = [], 0
    for info in source.tensors.values():
        rows.append((info.name, info.shape, info.type_id, at))
        at += -(-info.nbytes // 32) * 32
    first = tmp_path / "first.gguf"
    body = b"".join(
        data[t.offset : t.offset + t.nbytes].ljust(-(-t.nbytes // 32) * 32, b"\0")
        for t in source.tensors.values()
    )
    first.write_bytes(container.pack_header({**source.metadata, **extra}, rows) + body)
    convert(first, tmp_path / "hf", "hf:f32")
    convert(tmp_path / "hf", tmp_path / "second.gguf", "gguf:f32")
    again = container.read(tmp_path / "second.gguf").metadata
    for key, value in extra.items():
        assert repr(again[key]) == repr(value), key


def test_splits_hold_the_same_model(gguf: Gguf, tmp_path: Path) -> None:
    """Split files load in llama.cpp and in our reader, and are merged again without loss."""
    import llama_cpp

    out = tmp_path / "part.gguf"
    done = convert("builtin:zen-nano", out, "gguf:bf16", options=Options(split_max_size=5_000_000))
    assert len(done.files) > 3
    assert all(f.stat().st_size < 6_000_000 for f in done.files)
    assert not out.exists()
    assert diff("builtin:zen-nano", done.files[0]).identical
    loaded = llama_cpp.Llama(model_path=str(done.files[0]), n_ctx=64, verbose=False)
    assert loaded.n_vocab() == 8192
    loaded.close()
    convert(done.files[0], tmp_path / "merged.gguf", "gguf:bf16")
    assert diff(tmp_path / "merged.gguf", gguf("builtin:zen-nano", "bf16")).identical


def test_tied_heads_stay_tied(tmp_path: Path) -> None:
    from tests.tiny import raw_model
    from tests.tokenizers_for_tests import MAKERS

    folder = tmp_path / "tied"
    folder.mkdir()
    raw_model(folder, "qwen2", vocab_size=MAKERS["qwen2"](folder), tie_word_embeddings=True)
    convert(folder, tmp_path / "tied.gguf", "gguf:f32")
    convert(tmp_path / "tied.gguf", tmp_path / "hf", "hf:f32")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    np.testing.assert_allclose(
        transformers_logits(tmp_path / "hf"), transformers_logits(folder), atol=1e-4, rtol=0
    )


def test_chat_template_and_special_tokens_survive(gguf: Gguf, tmp_path: Path) -> None:
    convert(gguf("builtin:zen-nano", "q8_0"), tmp_path / "hf", "hf:bf16")
    source = AutoTokenizer.from_pretrained(open_checkpoint("builtin:zen-nano").path)
    found = AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = [{"role": "user", "content": "Xin chào"}, {"role": "assistant", "content": "مرحبا"}]
    assert found.apply_chat_template(chat) == source.apply_chat_template(chat)
    assert (found.eos_token, found.pad_token) == (source.eos_token, source.pad_token)
