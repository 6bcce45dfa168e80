"""Language towers of models that see or hear: config and tensors of the tower alone.

A table of a family names the model types that hold such a model, under which key of their config
it stands, what its tensors begin with there, and what stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenconvert.errors import InvalidInput, Unsupported, several
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import for_model_type, wrapper_of
from zenconvert.model.table_rows import Wrapper

_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
"""Keys of the outer config that hold for the tower, where it says nothing itself."""
_QUANTIZATION = "quantization_config"


def tower_config(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Wrapper | None]:
    """The config of the language model, and what it is inside of; None for a model of text.

    Raises InvalidInput where the tower's config is none, Unsupported for a quantized model.
    """
    wrapper = wrapper_of(str(config.get("model_type")))
    if wrapper is None:
        return dict(config), None
    inner = config.get(wrapper.config)
    if not isinstance(inner, Mapping):
        raise InvalidInput(f"{path}: {wrapper.config} should be an object, found {inner!r:.60}")
    if config.get(_QUANTIZATION) or inner.get(_QUANTIZATION):
        raise Unsupported(f"{path}: a quantized language model inside of another cannot be read")
    given = inner.get("model_type", wrapper.text_type)
    shared = {key: config[key] for key in (*_SHARED, "torch_dtype", "dtype") if key in config}
    own = {key: value for key, value in inner.items() if value is not None or key not in shared}
    name = for_model_type(str(given), wrapper).hf_class
    return {**shared, **own, "model_type": given, "architectures": [name]}, wrapper


def tower_entries(
    entries: Mapping[str, Entry], wrapper: Wrapper
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """The tower's tensors by the names that it has alone, and a line for all that is beside it."""
    found, left = dict[str, Entry](), Counter[str]()
    for name, entry in entries.items():
        beside = next((prefix for prefix in wrapper.beside if name.startswith(prefix)), None)
        if beside is not None:
            left[beside.rstrip(".")] += 1
            continue
        for prefix, plain in wrapper.prefixes.items():
            if name.startswith(prefix):
                name = plain + name.removeprefix(prefix)
                break
        found[name] = entry
    return dict(sorted(found.items())), tuple(
        f"{n} ({several(count, 'tensor', 'tensors')})" for n, count in left.items()
    )
