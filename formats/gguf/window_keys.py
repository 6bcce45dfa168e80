"""Keys of GGUF that say which layers see a sliding window."""

from __future__ import annotations

from typing import Any

from zenconvert.formats.gguf.key_reader import KeyReader
from zenconvert.formats.gguf.layer_keys import PATTERN_KEY
from zenconvert.model.architecture import Architecture
from zenconvert.model.sliding import FULL, SLIDES, layer_types


def layers_of(architecture: Architecture, keys: KeyReader) -> dict[str, Any]:
    """Which layers slide, where that is not what a config that is silent says."""
    family, layers = architecture.in_gguf, keys.integer("block_count")
    period = family.window_period
    if not period:
        return {}
    if family.windows_layers not in (0, layers):
        return {"layer_types": layer_types(layers, 1), "sliding_window": None}
    pattern = keys.metadata.get(f"{keys.prefix}{PATTERN_KEY}")
    if not keys.integer("attention.sliding_window", implied_window(architecture)):
        return {"layer_types": layer_types(layers, 1)}
    if pattern is None:
        usual = period == architecture.block.window_period and not family.pattern_always
        return {} if usual else {"layer_types": layer_types(layers, period)}
    if pattern[0] == "arr:bool" and len(pattern[1]) >= layers:
        return {"layer_types": [SLIDES if s else FULL for s in list(pattern[1])[:layers]]}
    told = keys.integer(PATTERN_KEY)
    return {"layer_types": layer_types(layers, told) if told else [SLIDES] * layers}


def unread_window(architecture: Architecture, keys: KeyReader) -> list[str]:
    """A warning where a file has a window that llama.cpp does not apply, as in Phi-3."""
    name, family = "attention.sliding_window", architecture.in_gguf
    there = family.has_key("sliding_window") and keys.has(name) and not family.window_period
    window = keys.integer(name) if there else 0
    if not 0 < window < keys.integer("context_length"):
        return []
    return [
        f"{keys.prefix}{name} is {window}: llama.cpp applies no window in {architecture.gguf} "
        "models, and other formats do: texts longer than that differ"
    ]


def implied_window(architecture: Architecture) -> int:
    found = architecture.in_gguf.implied.get("sliding_window", 0)
    return int(found) if not isinstance(found, str) else 0
