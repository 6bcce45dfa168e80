"""What tables of families may say of llama.cpp's graphs and tokenizers, word by word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zenconvert.model.pretokenizer import by_name, merging_models

SCALINGS: Final = frozenset({"linear", "yarn", "dynamic", "llama3", "longrope", "proportional"})
"""Kinds of scaled rotations."""
GRAPH: Final[dict[str, Callable[[Any], bool]]] = {
    "heads": ("any", "hidden / heads").__contains__,
    "kv_heads": ("any", "heads").__contains__,
    "scalings": lambda value: isinstance(value, list) and set(value) <= SCALINGS,
    "yarn_betas": lambda value: isinstance(value, bool),
    "switches": lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    "stated_heads": lambda value: isinstance(value, list) and set(value) <= SCALINGS,
    "whole_queries_layers": lambda value: isinstance(value, list),
    "no_biases": lambda value: isinstance(value, list),
    "biases": ("optional", "required").__contains__,
    "window_period": lambda value: type(value) is int,
    "windows": ("optional", "always").__contains__,
    "head": ("any", "tied", "own").__contains__,
    "pattern": ("other", "always").__contains__,
    "windows_layers": lambda value: type(value) is int,
    "seventy": ("never", "any", "grouped").__contains__,
    "hidden_over_heads_layers": lambda value: type(value) is int,
}
"""Key of ``[gguf_graph]`` → whether a value is understood."""
TOKEN_ROLES: Final = ("bos", "eos", "unk", "eot", "eom")
"""Roles of tokens that ``special`` of ``[gguf_tokenizer]`` may fill."""
TOKENIZER: Final[dict[str, Callable[[Any], bool]]] = {
    "space_prefix": ("first", "last", "silent").__contains__,
    "without_bos": lambda value: isinstance(value, list),
    "pre": lambda value: value == "" or (isinstance(value, str) and bool(by_name(value))),
    "model": lambda value: value == "" or value in merging_models(),
    "shown": lambda value: isinstance(value, list),
    "special": lambda value: isinstance(value, dict) and set(value) <= set(TOKEN_ROLES),
}
"""Key of ``[gguf_tokenizer]`` → whether a value is understood."""
