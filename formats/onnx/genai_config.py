"""``genai_config.json``: what onnxruntime-genai wants to know of a decoder.

Source: onnxruntime-genai ``src/config.cpp`` and ``src/models/model_type.h``.
"""

from __future__ import annotations

from typing import Any, Final

from zenconvert.model.checkpoint import Checkpoint

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


def genai_config(checkpoint: Checkpoint, graph: str, *, shares_cache: bool) -> dict[str, Any]:
    """The file for a graph beside it.

    ``shares_cache``: past and present may be one buffer, as GroupQueryAttention allows.
    """
    hp = checkpoint.hyperparameters
    model_type = checkpoint.config.get("model_type")
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": hp.head_dim,
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
        "num_key_value_heads": hp.kv_heads,
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
    found: dict[str, Any] = {}
    for kind in ("bos", "eos", "pad"):
        key = f"{kind}_token_id"
        value = checkpoint.metadata.generation.get(key, checkpoint.config.get(key))
        if value is None and checkpoint.side_files is None:
            value = checkpoint.tokenizer.special.get(kind)
        if value not in (None, []):
            found[key] = value
    if "eos_token_id" in found and "pad_token_id" not in found:
        eos = found["eos_token_id"]
        found["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    return found


def _search(checkpoint: Checkpoint) -> dict[str, Any]:
    given = checkpoint.metadata.generation
    return {key: given.get(key, default) for key, default in _SEARCH.items()}
