"""Numbers that GGUF files have one by one for every layer, where some layers have others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from zenconvert.errors import CorruptFile
from zenconvert.formats.gguf.key_reader import KeyReader
from zenconvert.model.architecture import Architecture
from zenconvert.model.architecture_table import SECTIONS
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.linear_attention import LINEAR
from zenconvert.model.sliding import FULL

_FLAGS: Final = ("normed_heads",)
"""Sizes that configs have as true or false."""
PATTERN_KEY: Final = "attention.sliding_window_pattern"
RECURRENT_KEY: Final = "attention.recurrent_layers"


def of_layers(size: str, hp: Hyperparameters, slides: Sequence[bool]) -> list[int]:
    """A number for every layer; none where the converter writes one for all."""
    if size == "ffn":
        own = hp.layers - hp.sharing
        return [hp.ffn] * own + [hp.wide_ffn] * hp.sharing if hp.wide_ffn else []
    return [hp.kv_heads if s else hp.full_kv_heads for s in slides] if hp.full_kv_heads else []


def ffn_of(keys: KeyReader, name: str) -> dict[str, float]:
    """Inner sizes of feed-forward networks: the first, and twice that in the last layers, which
    read keys and values of others, or everywhere the same. Raises CorruptFile."""
    kind, value = keys.metadata.get(f"{keys.prefix}{name}", ("", None))
    if not kind.startswith("arr:"):
        return {"ffn": keys.integer(name)}
    found = [int(n) for n in value] if kind in ("arr:i32", "arr:u32") else []
    sharing = keys.integer("attention.shared_kv_layers", 0)
    own, others = found[: len(found) - sharing], found[len(found) - sharing :]
    wide = [2 * own[0]] * sharing if own else []
    if not own or set(own) != {own[0]} or others not in (wide, [own[0]] * sharing):
        raise CorruptFile(
            f"{keys.where}: {keys.prefix}{name} should be one number, or twice that in the "
            f"last {sharing} layers, found {found!r:.100}"
        )
    return {"ffn": own[0], "wide_ffn": 2 * own[0]} if others == wide else {"ffn": own[0]}


def kv_heads_of(keys: KeyReader, name: str) -> dict[str, float]:
    """Key-value heads of layers that slide and of others. Raises CorruptFile."""
    kind, value = keys.metadata.get(f"{keys.prefix}{name}", ("", None))
    if not kind.startswith("arr:"):
        return {"kv_heads": keys.integer(name)}
    slides = list(keys.metadata.get(f"{keys.prefix}{PATTERN_KEY}", ("", ()))[1])
    heads = list(value) if kind in ("arr:i32", "arr:u32") else []
    pairs = [(int(n), bool(slide)) for n, slide in zip(heads, slides, strict=False)]
    sets = [{n for n, slide in pairs if slide == kind} for kind in (True, False)]
    if len(heads) != len(slides) or max(map(len, sets)) > 1 or not heads:
        raise CorruptFile(
            f"{keys.where}: {keys.prefix}{name} should have one number for all layers that slide "
            f"and one for all others, found {heads!r:.100} and {slides!r:.100} of {PATTERN_KEY}"
        )
    sliding, full = (next(iter(one), 0) for one in sets)
    return {"kv_heads": sliding or full, "full_kv_heads": full or sliding}


def linear_of(architecture: Architecture, keys: KeyReader) -> dict[str, Any]:
    """What a config says of linear attention, beside what it has of numbers: which layers have it,
    and the size of its heads of values. Raises CorruptFile."""
    if "linear" not in architecture.layers:
        return {}
    layers, interval = keys.integer("block_count"), keys.integer("full_attention_interval", 4)
    kind, value = keys.metadata.get(f"{keys.prefix}{RECURRENT_KEY}", ("", None))
    found = [bool((layer + 1) % max(interval, 1)) for layer in range(layers)]
    if kind == "arr:bool" and value is not None:
        found = [bool(one) for one in value]
    if len(found) < layers:
        told = f"{keys.where}: {keys.prefix}{RECURRENT_KEY} should be of {layers} layers"
        raise CorruptFile(f"{told}, found {len(found)}")
    heads, width = keys.integer("ssm.time_step_rank"), keys.integer("ssm.inner_size")
    return {
        architecture.layers["linear"]: [LINEAR if one else FULL for one in found[:layers]],
        architecture.key("linear_value_dim"): width // max(heads, 1),
    }


def sections_of(architecture: Architecture, keys: KeyReader) -> dict[str, Any]:
    """Pairs of channels that rotate by each dimension of positions, where a file has them, under
    the key that configs have them by among rotations. Raises CorruptFile."""
    row = next((row for row in architecture.in_gguf.keys if row.type == SECTIONS), None)
    kind, value = keys.metadata.get(f"{keys.prefix}{row.name}" if row else "", ("", None))
    if value is None or row is None:
        return {}
    if kind not in ("arr:i32", "arr:u32"):
        raise CorruptFile(f"{keys.where}: {keys.prefix}{row.name} should be whole numbers")
    found = [int(one) for one in value]
    while found and not found[-1]:
        found.pop()
    return {architecture.key("rotary_sections").rpartition(".")[2]: found}


def flags(architecture: Architecture, sizes: Mapping[str, float]) -> dict[str, bool]:
    """What a config says of kinds of layers, from sizes that a file has."""
    named = {"wide": "wide_ffn", "mixture": "experts"}
    names = architecture.layers
    return {names[key]: bool(sizes.get(size)) for key, size in named.items() if key in names}


def with_modules(architecture: Architecture, stored: Collection[str]) -> dict[str, bool]:
    """Flags of configs for modules that only some models have: whether they are ``stored``."""
    flagged = [m for m in architecture.modules if m.only_with in _FLAGS]
    there = {m.only_with: f"{m.gguf.replace('{layer}', '0')}.weight" in stored for m in flagged}
    return {architecture.key(size): found for size, found in there.items()}


def keyed(
    architecture: Architecture, config: Mapping[str, Any], stored: Collection[str]
) -> dict[str, bool]:
    """Whether values are keys in layers that see everything: these have none among the tensors that
    are ``stored``."""
    if "keyed" not in architecture.layers:
        return {}
    types = config["layer_types"]
    own = types[: len(types) - (config.get(architecture.key("sharing")) or 0)]
    values = [m.gguf for m in architecture.modules if m.layers == "values"]
    found = any(
        f"{name.replace('{layer}', str(layer))}.weight" not in stored
        for name in values
        for layer, kind in enumerate(own)
        if kind == FULL
    )
    return {architecture.layers["keyed"]: found}
