"""mistral.rs, a GGUF implementation of its own, computes with our files what we decode.

It rounds activations to eight bits where weights are quantized, as llama.cpp does: a KL divergence
of 8e-4 with Q8_0 and of 2e-3 with Q4_K_M, and of 1e-7 with floats. A file with rows in wrong order
or experts in a wrong place is off by more than 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.tool import Tool
from tests.tiny import raw_model
from tests.tokenizers_for_tests import llama3
from zenconvert import convert, open_checkpoint

pytestmark = pytest.mark.oracles

TEXTS = (
    "The ferry leaves at nine, and",
    "La bibliothèque ouvre",
    "Der Zug nach",
    "El gato duerme",
    "今天天气",
    "В лесу",
    "كان يا ما كان",
    "def f(x):\n    return",
)
COUNT = 4  # tokens that follow each
ROUNDED, EXACT = 1e-2, 1e-5


@pytest.fixture(scope="session")
def short_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 256 positions: tables of the 131,072 of the other one take it half a minute."""
    folder = tmp_path_factory.mktemp("models") / "short-llama"
    folder.mkdir()
    vocab = llama3(folder)
    return raw_model(
        folder,
        "llama3",
        vocab_size=vocab,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=256,
        rope_scaling=None,
    )


@pytest.mark.parametrize(
    ("source", "file_type", "bound"),
    [
        ("builtin:zen-nano", "f32", EXACT),
        ("builtin:zen-nano", "q8_0", ROUNDED),
        ("builtin:zen-nano", "q4_k_m", ROUNDED),
        ("llama", "q8_0", ROUNDED),
        ("llama", "q4_k_m", ROUNDED),
        ("mixtral", "f16", EXACT),
        ("mixtral", "q8_0", ROUNDED),
        ("mixtral", "q4_k_m", ROUNDED),
    ],
)
def test_it_computes_with_our_files_what_we_decode(
    source: str,
    file_type: str,
    bound: float,
    gguf: Callable[[str, str], Path],
    short_llama: Path,
    mistralrs: Tool,
    tmp_path: Path,
) -> None:
    if source == "llama":
        file = tmp_path / "x.gguf"
        convert(short_llama, file, f"gguf:{file_type}")
    else:
        file = gguf(source, file_type)
    vocab = open_checkpoint(file).hyperparameters.vocab
    out = tmp_path / "theirs.npy"
    found = mistralrs("continued", file=file, texts=list(TEXTS), count=COUNT, vocab=vocab, out=out)
    expected = ours.all_logits(file, [[*ids, *more] for ids, more in found])
    divergences = [
        ours.divergence(logits[len(ids) - 1 : -1], theirs)
        for (ids, _), logits, theirs in zip(found, expected, np.load(out), strict=True)
    ]
    assert np.mean(divergences) < bound
