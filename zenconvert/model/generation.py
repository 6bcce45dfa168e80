"""What a model says about drawing tokens, as far as it is one thing in every format.

Source: transformers' ``GenerationConfig``: ``generation_config.json``, or what ``config.json`` says
of it where there is no such file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zenconvert.model.checkpoint import Checkpoint

EOS: Final = "eos_token_id"
TOKEN_IDS: Final = ("bos_token_id", EOS, "pad_token_id")
CONSTRAINTS: Final = frozenset(
    {
        "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids",
        "forced_bos_token_id", "forced_eos_token_id", "sequence_bias", "constraints",
        "stop_strings", "forced_decoder_ids",
    }
)  # fmt: skip
"""Settings that forbid texts, force them or end them: without them a model says other things."""
_IDLE: Final[Mapping[str, tuple[Any, ...]]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "repetition_penalty": (1,),
    "length_penalty": (1,), "diversity_penalty": (0,), "encoder_repetition_penalty": (1,),
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "min_p": (0,),
    "min_length": (0,), "remove_invalid_values": (False,), "renormalize_logits": (False,),
    "penalty_alpha": (0,),
}  # fmt: skip
_FOR_CODE: Final = frozenset(
    {
        "transformers_version", "use_cache", "output_scores", "output_attentions", "cache_config",
        "output_hidden_states", "output_logits", "return_dict_in_generate", "cache_implementation",
        "max_time", "disable_compile", "compile_config", "trust_remote_code", "name_or_path",
    }
)  # fmt: skip


def is_idle(key: str, value: Any) -> bool:
    """Whether a setting changes no text: one of a program that runs it, or that is off."""
    if key in _FOR_CODE or key.startswith("_") or value in (None, [], {}):
        return True
    return key in _IDLE and value in _IDLE[key]


def is_said(checkpoint: Checkpoint) -> bool:
    """Whether the ends of a text are said on purpose: in generation settings, or as a list.

    A single id in ``config.json`` is often what a config class had by default, while the tokenizer
    of the folder names another token.
    """
    if checkpoint.metadata.generation.get(EOS) is not None:
        return True
    return isinstance(checkpoint.config.get(EOS), list)


def end_ids(checkpoint: Checkpoint) -> list[int]:
    """Ids of the tokens at which transformers ends a text, each once; [] where it says nothing."""
    given = checkpoint.metadata.generation.get(EOS)
    if given is None:
        given = checkpoint.config.get(EOS)
    members = given if isinstance(given, list) else [given]
    ids = (one for one in members if isinstance(one, int) and not isinstance(one, bool))
    return list(dict.fromkeys(one for one in ids if one >= 0))
