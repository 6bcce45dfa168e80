"""Layer by layer or in llama.cpp: logits are those of the whole model in transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import raw_model
from zenconvert import open_checkpoint
from zenconvert.errors import InvalidInput, MissingDependency, UsageError
from zenconvert.reference import batches, loading
from zenconvert.reference.batches import make_batches
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.llamacpp import LlamaCppEngine
from zenconvert.verification.engines.torch_engine import TorchEngine
from zenconvert.verification.scoring import score_windows

Gguf = Callable[[str, str], Path]

LENGTHS = (3, 200, 61, 2, 128, 61)


def made_up(*lengths: int) -> list[Window]:
    random = np.random.default_rng(5)
    return [
        Window(f"s{n}", "und", tuple(random.integers(0, 512, length).tolist()))
        for n, length in enumerate(lengths)
    ]


def torch_logits(folder: Path, windows: Sequence[Window]) -> list[NDArray[np.float32]]:
    engine = TorchEngine(
        open_checkpoint(folder), windows, device="cpu", progress=lambda done, total: None
    )
    return [engine.logits(n, 0, len(window.ids)).numpy() for n, window in enumerate(windows)]


def transformers_logits(folder: Path, windows: Sequence[Window]) -> list[NDArray[np.float32]]:
    """One window at a time, all layers at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([window.ids])).logits[0].numpy() for window in windows]


def assert_same_logits(folder: Path, windows: Sequence[Window]) -> None:
    expected = transformers_logits(folder, windows)
    assert max(np.ptp(logits) for logits in expected) > 1
    for ours, theirs in zip(torch_logits(folder, windows), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama3", {}),
    "llama, scaled within the window": (
        "llama3",
        {
            "max_position_embeddings": 256,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral, sliding": ("mistral", {"sliding_window": 48}),
    "mixtral": ("mixtral", {}),
    "mixtral, three of five experts": (
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, the last layer sliding": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 32,
            "max_window_layers": 2,
            "num_hidden_layers": 3,
        },
    ),
    "qwen2, layer types": (
        "qwen2",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "use_sliding_window": True,
            "sliding_window": 32,
        },
    ),
    "qwen2, yarn": (
        "qwen2",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, changes = CONFIGS[name]
    assert_same_logits(raw_model(tmp_path / "model", family, **changes), made_up(*LENGTHS))


def test_biases_that_the_config_announces_are_used(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", "llama3", attention_bias=True)
    add_biases(folder)
    assert_same_logits(folder, made_up(40))


def add_biases(folder: Path, *, but: str = "") -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    random = np.random.default_rng(2)
    for name in [n for n in tensors if ".self_attn." in n and not (but and but in n)]:
        size = tensors[name].shape[0]
        values = random.standard_normal(size).astype(tensors[name].dtype)
        tensors[name.replace(".weight", ".bias")] = values
    save_file(tensors, path, metadata={"format": "pt"})


def test_biases_that_nobody_gives_are_zero(tmp_path: Path) -> None:
    """Some of those that the config announces, or all: transformers takes them for zeros."""
    folder = raw_model(tmp_path / "all", "llama3", attention_bias=True, mlp_bias=True)
    assert_same_logits(folder, made_up(40))
    add_biases(folder, but="o_proj")
    assert_same_logits(folder, made_up(40))


def test_biases_that_the_config_does_not_announce_are_left_out(tmp_path: Path) -> None:
    """As transformers does."""
    folder = raw_model(tmp_path / "hidden", "llama3")
    add_biases(folder)
    with pytest.warns(UserWarning, match="8 biases are left out"):
        assert_same_logits(folder, made_up(40))


def test_token_ids_without_a_row_are_refused(tmp_path: Path) -> None:
    """Whatever lies behind the table is never read."""
    folder = raw_model(tmp_path / "model")
    windows = [Window("a", "und", (1, 2)), Window("b", "und", (3, 511, 512, 5))]
    with pytest.raises(InvalidInput, match=r"id 512.*512 rows"):
        torch_logits(folder, windows)
    with pytest.raises(InvalidInput, match=r"id -1"):
        torch_logits(folder, [Window("a", "und", (1, -1))])


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "banana"},
        {"torch_dtype": "banana"},
        {"rope_scaling": {"rope_type": "banana", "factor": 2.0}},
        {"layer_types": ["full_attention"]},
    ],
)
def test_configs_that_transformers_refuses_are_invalid(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = raw_model(tmp_path / "model", **change)
    with pytest.raises(InvalidInput, match=r"transformers refuses the config"):
        torch_logits(folder, made_up(4))


def test_a_config_cannot_bring_code_or_other_outputs(tmp_path: Path) -> None:
    folder = raw_model(
        tmp_path / "model",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        _attn_implementation="evil/kernel",
        return_dict=False,
    )
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    plain = raw_model(tmp_path / "plain")
    expected = transformers_logits(plain, made_up(9))
    np.testing.assert_allclose(torch_logits(folder, made_up(9)), expected, atol=1e-4)


def test_pieces_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors read in slabs, windows in many small batches, positions asked for in parts."""
    folder, windows = raw_model(tmp_path / "model", "mixtral"), made_up(*LENGTHS)
    whole = torch_logits(folder, windows)
    monkeypatch.setattr(loading, "_SLAB_ELEMENTS", 256 * 100)
    monkeypatch.setattr(batches, "_TOKENS_ELSEWHERE", 130)
    engine = TorchEngine(
        open_checkpoint(folder), windows, device="cpu", progress=lambda done, total: None
    )
    for number, window in enumerate(windows):
        for begin in range(0, len(window.ids), 50):
            end = min(begin + 50, len(window.ids))
            part = engine.logits(number, begin, end)
            np.testing.assert_allclose(part, whole[number][begin:end], atol=1e-5, rtol=0)


def test_batches_hold_every_window_once_and_little_padding() -> None:
    random = np.random.default_rng(0)
    windows = made_up(*random.integers(2, 300, 90).tolist())
    found = make_batches(windows, ["und"], 256)
    assert sorted(index for batch in found for index in batch.windows) == list(range(90))
    for batch in found:
        lengths = [len(windows[index].ids) for index in batch.windows]
        assert batch.lengths == tuple(lengths)
        assert len(batch.windows) == 1 or max(lengths) * len(batch.windows) <= 256
    assert len(found) < 70


def test_windows_of_sixteen_thousand_tokens_are_scored_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is applied to no more positions at a time than a block holds."""
    folder = raw_model(
        tmp_path / "model", "llama3", num_hidden_layers=1, hidden_size=64, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
    )  # fmt: skip
    checkpoint, windows = open_checkpoint(folder), made_up(16_400)
    engine = TorchEngine(checkpoint, windows, device="cpu", progress=lambda done, total: None)
    monkeypatch.setattr("zenconvert.verification.metrics.BLOCK_ELEMENTS", 1 << 20)
    asked: list[int] = []

    class Counted:
        def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
            asked.append(end - begin)
            return engine.logits(window, begin, end)

    (found,) = score_windows(engine, Counted(), windows, 512, lambda done, total: None)
    assert len(found) == sum(asked) == 16_399
    assert max(asked) * 512 <= 1 << 20
    assert len(asked) == 9
    assert (found.kl == 0).all()


def test_progress_counts_layers(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = raw_model(tmp_path / "model", num_hidden_layers=3)
    TorchEngine(
        open_checkpoint(folder),
        made_up(4),
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_llamacpp_forgets_the_window_before(gguf: Gguf) -> None:
    checkpoint = open_checkpoint(gguf("builtin:zen-nano", "f32"))
    windows = made_up(40, 9, 40, 23)
    engine = LlamaCppEngine(checkpoint, windows, threads=2)
    folder = open_checkpoint("builtin:zen-nano").path
    expected = transformers_logits(folder, windows)
    for number in (0, 3, 1, 2, 0):
        found = engine.logits(number, 2, len(windows[number].ids) - 1)
        np.testing.assert_allclose(found, expected[number][2:-1], atol=1e-3, rtol=0)
    engine.close()


def test_llamacpp_runs_gguf_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs GGUF files"):
        LlamaCppEngine(open_checkpoint(raw_model(tmp_path / "model")), made_up(4), threads=1)


def test_a_missing_llamacpp_names_the_extra(gguf: Gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(gguf("builtin:zen-nano", "f32"))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingDependency, match=r"zenconvert\[llamacpp\]"):
        LlamaCppEngine(checkpoint, made_up(4), threads=1)


def test_what_llamacpp_refuses_is_invalid(gguf: Gguf, tmp_path: Path) -> None:
    """A pre-tokenizer that llama.cpp does not know."""
    data = gguf("builtin:zen-nano", "q8_0").read_bytes()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key) + 4 + 8
    assert data[at : at + 5] == b"qwen2"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[:at] + b"qwxn2" + data[at + 5 :])
    with pytest.raises(InvalidInput, match=r"broken\.gguf: llama\.cpp cannot load it"):
        LlamaCppEngine(open_checkpoint(broken), made_up(4), threads=1)


def test_the_tiny_configs_say_what_they_test(tmp_path: Path) -> None:
    """Sliding windows and scaled rotations are shorter than the longest window."""
    folder = raw_model(tmp_path / "model", "mistral", sliding_window=48)
    windows = made_up(200)
    near = torch_logits(folder, windows)[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": None}))
    far = torch_logits(folder, windows)[0]
    np.testing.assert_allclose(near[:48], far[:48], atol=1e-4)
    assert np.abs(near[48:] - far[48:]).max() > 0.01
