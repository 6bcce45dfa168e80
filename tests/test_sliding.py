"""Which layers see a window: as transformers' own configs have it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from tests.tiny import CONFIGS
from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.model.architecture import for_model_type
from zenconvert.model.sliding import windows

LAYERS = 3


def found(config: dict[str, Any]) -> tuple[int | None, ...]:
    architecture = for_model_type(config["model_type"])
    return windows(architecture, config, architecture.sizes(config, where="test"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sliding_window": 8},
        {"sliding_window": 8, "use_sliding_window": False},
        {"sliding_window": 8, "use_sliding_window": True},
        {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
        {"use_sliding_window": True, "max_window_layers": 1},
        {
            "sliding_window": 8,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ],
)
def test_upper_layers(config: dict[str, Any]) -> None:
    whole = {**CONFIGS["qwen2"], "num_hidden_layers": LAYERS, **config}
    theirs = AutoConfig.for_model(**whole)
    expected = tuple(
        theirs.sliding_window if kind == "sliding_attention" else None
        for kind in theirs.layer_types
    )
    assert found(whole) == expected


@pytest.mark.parametrize("family", ["llama3", "mistral", "mixtral"])
@pytest.mark.parametrize("config", [{}, {"sliding_window": 8}, {"sliding_window": None}])
def test_every_layer_or_none(family: str, config: dict[str, Any]) -> None:
    whole = {**CONFIGS[family], "num_hidden_layers": LAYERS, **config}
    reads = {"mistral", "mixtral"}  # MistralAttention and MixtralAttention; LlamaAttention does not
    window = AutoConfig.for_model(**whole).sliding_window if family in reads else None
    assert found(whole) == (window,) * LAYERS


@pytest.mark.parametrize(
    ("types", "error", "reason"),
    [
        (["full_attention"], InvalidInput, "should name 2 layers"),
        (["full_attention", "linear_attention"], Unsupported, "linear_attention"),
        ([["full_attention"], 5], Unsupported, "full_attention"),
        (["full_attention", "sliding_attention"], InvalidInput, "there is no sliding_window"),
    ],
)
def test_layers_of_other_kinds_are_refused(
    types: list[Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        found({**CONFIGS["qwen2"], "layer_types": types})
