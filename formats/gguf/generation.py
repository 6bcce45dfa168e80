"""Settings of drawing tokens ↔ ``general.sampling.*`` and the ids of tokens that end a text.

llama.cpp's programs take these as defaults (``common_init_sampler_from_model``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.endings import endings, with_endings
from zenconvert.model import generation
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.meaning import Fact

SAMPLING: Final = {
    "sequence": ("str", ("sequence",)),
    "top_k": ("i32", ("top_k",)),
    "top_p": ("f32", ("top_p",)),
    "min_p": ("f32", ("min_p",)),
    "xtc_probability": ("f32", ("xtc_probability",)),
    "xtc_threshold": ("f32", ("xtc_threshold",)),
    "temp": ("f32", ("temperature",)),
    "penalty_last_n": ("i32", ("penalty_last_n",)),
    "penalty_repeat": ("f32", ("penalty_repeat", "repetition_penalty")),
    "mirostat": ("i32", ("mirostat",)),
    "mirostat_tau": ("f32", ("mirostat_tau",)),
    "mirostat_eta": ("f32", ("mirostat_eta",)),
}
"""Key → its type, and the settings that it holds, the strongest first."""
_PLACE: Final = "general.sampling."
_READ: Final = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
"""Keys that transformers has a setting for."""
SUPPRESSED: Final = "tokenizer.ggml.suppress_tokens"
"""Tokens that llama.cpp's programs never draw."""
_SUPPRESS: Final = "suppress_tokens"
_WINDOW: Final = 64
"""Tokens that llama.cpp's penalty looks back at where nobody says how many."""


def sampling_keys(settings: Mapping[str, Any]) -> dict[str, KeyValue]:
    """``general.sampling.*`` of settings in the words of transformers."""
    keys: dict[str, KeyValue] = {}
    for name, (kind, sources) in SAMPLING.items():
        value = next((settings[s] for s in sources if settings.get(s) is not None), None)
        if value is not None:
            convert = {"str": str, "i32": int, "f32": float}[kind]
            keys[f"{_PLACE}{name}"] = (kind, convert(value))
    return keys


def suppressed_keys(checkpoint: Checkpoint) -> dict[str, KeyValue]:
    """The key of tokens that are never drawn; none where the settings name none."""
    given = checkpoint.metadata.generation.get(_SUPPRESS)
    if not isinstance(given, list) or not given or any(type(one) is not int for one in given):
        return {}
    ids = [one for one in given if 0 <= one < checkpoint.hyperparameters.vocab]
    return {SUPPRESSED: ("arr:i32", np.array(ids, dtype=np.int32))} if ids else {}


def settings_of(metadata: Mapping[str, KeyValue]) -> dict[str, Any]:
    """What transformers has to be told to draw as llama.cpp does with a file: settings, and every
    token that ends a text."""
    found: dict[str, Any] = {}
    for key, setting in _READ.items():
        kind, value = metadata.get(f"{_PLACE}{key}", ("", None))
        if kind == SAMPLING[key][0] and np.isfinite(value):
            found[setting] = int(value) if kind == "i32" else float(str(np.float32(value)))
    if found:
        heat = found.get("temperature", 1.0)
        found = {"do_sample": heat > 0, **found}
        if heat <= 0:  # the likeliest token, whatever else is said
            found = {k: v for k, v in found.items() if k in {"do_sample", "repetition_penalty"}}
        if "top_k" in found:
            found["top_k"] = max(0, found["top_k"])
    kind, ids = metadata.get(SUPPRESSED, ("", ()))
    if kind == "arr:i32" and len(ids):
        found[_SUPPRESS] = [int(one) for one in ids]
    ends = endings(metadata)
    return {**found, **({generation.EOS: ends if len(ends) > 1 else ends[0]} if ends else {})}


def facts(checkpoint: Checkpoint, tokenizer_keys: Mapping[str, KeyValue]) -> Iterator[Fact]:
    """What becomes of every setting in a file with these ``tokenizer.*`` keys."""
    settings = checkpoint.metadata.generation
    places = {
        source: f"{_PLACE}{name}" for name, (_, sources) in SAMPLING.items() for source in sources
    }
    for key, value in settings.items():
        name = f"generation_config.{key}"
        if key == generation.EOS or value is None:
            continue
        if key in places:
            yield Fact(name, value, places[key], why=_window(key, value, settings))
        elif key in generation.TOKEN_IDS:
            yield _token(name, key, value, tokenizer_keys)
        elif key == _SUPPRESS and suppressed_keys(checkpoint):
            yield Fact(name, value, SUPPRESSED)
        elif generation.is_idle(key, value):
            yield Fact(name, value, "", why="changes nothing that is drawn")
        elif key == "do_sample":
            why = "llama.cpp always draws; its user says --temp 0 for the likeliest token"
            yield Fact(name, value, "", why=why)
        elif key in generation.CONSTRAINTS:
            why = "llama.cpp has no such key, and its texts will differ"
            yield Fact(name, value, "", exact=False, why=why)
        else:
            yield Fact(name, value, "", why="a wish for decoding that llama.cpp's user decides on")
    yield from _ends(checkpoint, tokenizer_keys)


def _window(key: str, value: Any, settings: Mapping[str, Any]) -> str:
    if key != "repetition_penalty" or value == 1 or settings.get("penalty_last_n") is not None:
        return ""
    return (
        f"over the last {_WINDOW} tokens, where transformers looks at all of them; "
        "--repeat-last-n -1 does so"
    )


def _token(name: str, key: str, value: Any, keys: Mapping[str, KeyValue]) -> Fact:
    place = f"tokenizer.ggml.{key.replace('pad_', 'padding_')}"
    own = keys.get(place, ("", None))[1]
    if own == value:
        return Fact(name, value, place)
    has = f"the tokenizer's is {own}" if own is not None else "the tokenizer has none"
    return Fact(name, value, "", why=f"{has}, and no text depends on it")


def _ends(checkpoint: Checkpoint, keys: Mapping[str, KeyValue]) -> Iterator[Fact]:
    wanted = generation.end_ids(checkpoint)
    where = "generation_config" if checkpoint.metadata.generation.get(generation.EOS) else "config"
    name = f"{where}.{generation.EOS}"
    said, missing = generation.is_said(checkpoint), list[int]()
    if said:
        keys, missing = with_endings(keys, wanted)
    ends = endings(keys)
    for number in wanted:
        if not said and number not in ends:
            why = "llama.cpp ends a text at the tokenizer's; a generation_config.json decides"
            yield Fact(name, number, "", why=why)
        elif number in missing:
            why = "llama.cpp has no key for so many tokens that end a text"
            yield Fact(name, number, "", exact=False, why=why)
        elif number in ends:
            yield Fact(name, number, _place(number, keys))
        else:
            yield Fact(name, number, "", why="there is no such token")
    if others := [number for number in ends if number not in wanted]:
        why = "llama.cpp ends a text there as well, by its role or its name"
        yield Fact(name, others, "", why=why)


def _place(number: int, keys: Mapping[str, KeyValue]) -> str:
    """The key that names a token that ends a text; else its own text says it."""
    named = [k for k, v in keys.items() if k.endswith("_token_id") and v[1] == number]
    ending = [k for k in named if k.split(".")[-1].split("_")[0] in {"eos", "eot", "eom"}]
    return ending[0] if ending else "tokenizer.ggml.tokens"
