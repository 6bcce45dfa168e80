"""One value of a config at a time is something else: a plan, or one clear error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zenconvert
from tests.families import FAMILIES
from tests.tiny import raw_model
from zenconvert.errors import ZenError

Config = dict[str, Any]

VALUES: tuple[Any, ...] = (
    0, -1, 1, None, "", "x", [], {}, [0], ["x"], [None], {"a": 1}, True, False, 0.5, -0.0, 1e300,
    float("inf"), float("nan"), 2**31, 2**63, 2**70, "0",
)  # fmt: skip
OPTIONAL: Config = {
    "head_dim": 64,
    "layer_types": ["full_attention"] * 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.0,
        "beta_fast": 32,
        "mscale": 1.0,
    },
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 30.0,
    "partial_rotary_factor": 1.0,
    "sliding_window": 16,
    "max_window_layers": 1,
    "qkv_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "text_config": {},
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "pad_token_id": 0,
    "auto_map": {},
}
"""Keys that configs of most families may have."""
DRAWS = 15


def changes(config: Config) -> Iterator[Config]:
    """Every config that differs in one value, at the first depth or the second."""
    for key, value in {**OPTIONAL, **config}.items():
        for other in VALUES:
            yield {**config, key: other}
        for inner in value if isinstance(value, dict) else ():
            for other in VALUES:
                changed = copy.deepcopy(value)
                changed[inner] = other
                yield {**config, key: changed}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_value(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    raw_model(folder, dict(FAMILIES[family].config))
    config = json.loads((folder / "config.json").read_text())
    draws = random.Random(f"values of {family}").sample(list(changes(config)), DRAWS)
    for changed in draws:
        (folder / "config.json").write_text(json.dumps(changed))
        for target in ("gguf:f32", "onnx:f32"):
            with contextlib.suppress(ZenError):
                zenconvert.plan(folder, target)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_an_original_context_of_null(kind: str, tmp_path: Path) -> None:
    """transformers reckons with it, and fails."""
    factors = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": None}
    folder = raw_model(tmp_path / "m", "llama3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "rope_scaling": {**scaling, **factors}})
    )
    with pytest.raises(ZenError, match=r"rope_scaling.original_max_position_embeddings should be"):
        zenconvert.plan(folder, "gguf:f32")


def test_layers_before_the_windows_are_counted(tmp_path: Path) -> None:
    sliding: Config = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": ""}
    folder = raw_model(tmp_path / "m", "qwen2", **sliding)
    with pytest.raises(ZenError, match=r"max_window_layers should be a number of layers"):
        zenconvert.plan(folder, "gguf:f32")
