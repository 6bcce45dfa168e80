"""What llama.cpp's graph of a family computes otherwise than a config says is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.families import FAMILIES
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import plan
from zenconvert.errors import PlanError

SLIDING, FULL = "sliding_attention", "full_attention"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows in a model of few layers": (
        "exaone4",
        {"sliding_window": 16, "num_hidden_layers": 4, "layer_types": [SLIDING] * 3 + [FULL]},
        "models of 4 layers have no layers with windows",
    ),
    "no windows in a model of many": (
        "exaone4_64",
        {"sliding_window": None, "layer_types": [FULL] * 64},
        "models of 64 layers have layers with windows",
    ),
    "a head that is the embedding": (
        "olmo2", {"tie_word_embeddings": True}, "olmo2 models have a head of their own",
    ),
    "another base of rotations where layers slide": (
        "olmo3",
        {
            "rope_scaling": None,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                FULL: {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        "computes olmo2 models with 500000",
    ),
    "no biases where the graph has some": (
        "starcoder2", {"use_bias": False}, "starcoder2 graph has a bias of",
    ),
    "another function between the matrices": (
        "starcoder2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'",
    ),
    "norms of heads that no model of so few layers has": (
        "cohere", {"use_qk_norm": True}, "use_qk_norm is True",
    ),
    "scaled rotations": (
        "cohere2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "no such scaling",
    ),
    "a head of its own": (
        "cohere2", {"tie_word_embeddings": False}, "has no head but the embedding",
    ),
    "heads of another size": ("granite", {"head_dim": 32}, "heads of hidden / heads only"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str, tmp_path: Path) -> None:
    name, changes, message = REFUSED[case]
    vocab = MAKERS["llama3"](tmp_path)
    config = {**FAMILIES[name].config, "hidden_size": 64, "intermediate_size": 64, **changes}
    raw_model(tmp_path, config, vocab_size=vocab, bos_token_id=1, eos_token_id=2, biases=True)
    with pytest.raises(PlanError, match=message):
        plan(tmp_path, "gguf:f32")
