"""transformers' own reader of GGUF files computes with ours what we decode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.oracles import ours

Gguf = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("source", "file_type"),
    [
        ("builtin:zen-nano", "q8_0"),
        ("builtin:zen-nano", "q4_k_m"),
        ("builtin:zen-nano", "iq4_xs"),
        ("qwen2", "q2_k"),
    ],
)
def test_it_computes_with_our_files_what_we_decode(source: str, file_type: str, gguf: Gguf) -> None:
    file = gguf(source, file_type)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([ours.IDS])).logits[0].numpy()
    ours.assert_close(ours.logits(file), np.asarray(theirs), 1e-5)


def test_it_takes_a_mixtral_for_a_llama(gguf: Gguf) -> None:
    """llama.cpp calls both ``llama``; that reader does not look for experts and makes up an MLP."""
    file = gguf("mixtral", "q4_k_m")
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    assert config.model_type == "llama"
    assert not hasattr(config, "num_local_experts")
