"""``genai_config.json``: what onnxruntime-genai wants to know of a decoder.

Source: onnxruntime-genai ``src/config.cpp`` and ``src/models/model_type.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from zenconvert.model import generation
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layer_heads import layer_heads
from zenconvert.model.meaning import Fact

NAME: Final = "genai_config.json"
_GENERIC: Final = "decoder"
"""The type of a model that the runtime has no name for."""
_SEARCH: Final = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
_REAL: Final = (int, float)
_SETTINGS: Final[dict[str, tuple[type, ...]]] = {
    "do_sample": (bool,),
    "temperature": _REAL,
    "top_k": _REAL,
    "top_p": _REAL,
    "repetition_penalty": _REAL,
    "min_length": _REAL,
    "no_repeat_ngram_size": _REAL,
    "num_beams": _REAL,
    "length_penalty": _REAL,
    "diversity_penalty": _REAL,
    "early_stopping": (bool,),
}
"""Settings that the runtime has, and the types that it reads; it loads no folder with another."""


def genai_config(checkpoint: Checkpoint, graph: str, *, shares_cache: bool) -> dict[str, Any]:
    """The file for a graph beside it.

    ``shares_cache``: past and present may be one buffer, as GroupQueryAttention allows.
    """
    hp = checkpoint.hyperparameters
    heads = layer_heads(hp)[0]
    model_type = checkpoint.config.get("model_type")
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": heads.size,
        "hidden_size": hp.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": hp.heads,
        "num_hidden_layers": hp.layers,
        "num_key_value_heads": heads.kv_heads,
    }
    return {
        "model": {
            **_special_tokens(checkpoint),
            "context_length": hp.context,
            "decoder": decoder,
            "type": model_type if model_type in checkpoint.architecture.genai_types else _GENERIC,
            "vocab_size": hp.vocab,
        },
        "search": {
            "max_length": hp.context,
            "past_present_share_buffer": shares_cache,
            **_search(checkpoint),
        },
    }


def _special_tokens(checkpoint: Checkpoint) -> dict[str, Any]:
    """Ids that the runtime takes: it loads no folder with one beyond the vocabulary."""
    found: dict[str, Any] = {}
    for kind in ("bos", "pad"):
        key = f"{kind}_token_id"
        value = checkpoint.metadata.generation.get(key, checkpoint.config.get(key))
        if value is None and checkpoint.side_files is None:
            value = checkpoint.tokenizer.special.get(kind)
        members = value if isinstance(value, list) else [value]
        if fitting := [one for one in members if _fits(one, checkpoint)]:
            found[key] = fitting[0]
    ends = [one for one in generation.end_ids(checkpoint) if _fits(one, checkpoint)]
    if not ends and checkpoint.side_files is None:
        ends = [one for one in (checkpoint.tokenizer.special.get("eos"),) if one is not None]
    if ends:
        found[generation.EOS] = ends if len(ends) > 1 else ends[0]
        found.setdefault("pad_token_id", ends[0])
    return dict(sorted(found.items()))


def _fits(token: Any, checkpoint: Checkpoint) -> bool:
    vocab = checkpoint.hyperparameters.vocab
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab


def _search(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings with the meaning that transformers gives them, in the runtime's bounds."""
    given = checkpoint.metadata.generation
    found: dict[str, Any] = _SEARCH | {
        key: given[key] for key, kinds in _SETTINGS.items() if isinstance(given.get(key), kinds)
    }
    top_k = min(max(0, int(found["top_k"])), checkpoint.hyperparameters.vocab)  # 0: all of them
    return {**found, "top_k": top_k}


def facts(checkpoint: Checkpoint) -> Iterator[Fact]:
    """What becomes of every setting; ``generation_config.json`` goes along as it is."""
    written = _special_tokens(checkpoint)
    for key, value in checkpoint.metadata.generation.items():
        name = f"generation_config.{key}"
        if value is None:
            continue
        if key in generation.TOKEN_IDS:
            members = value if isinstance(value, list) else [value]
            if odd := [one for one in members if not _fits(one, checkpoint)]:
                why = f"the model has {checkpoint.hyperparameters.vocab} tokens"
                yield Fact(name, odd, "generation_config.json", why=why)
            if key in written and odd != members:
                yield Fact(name, written[key], f"{NAME}: model.{key}")
        elif key in _SETTINGS and isinstance(value, _SETTINGS[key]):
            yield Fact(name, value, f"{NAME}: search.{key}")
        elif generation.is_idle(key, value):
            yield Fact(name, value, "", why="changes nothing that is drawn")
        elif key in generation.CONSTRAINTS:
            why = "onnxruntime-genai has no such setting, and its texts will differ"
            yield Fact(name, value, "generation_config.json", exact=False, why=why)
        else:
            why = "a wish for decoding; onnxruntime-genai has no such setting"
            yield Fact(name, value, "generation_config.json", why=why)
