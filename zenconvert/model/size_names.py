"""Names that tables of families have for numbers of a model."""

from __future__ import annotations

from typing import Final

SIZES: Final = frozenset(
    {
        "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context", "rms_eps",
        "experts", "experts_used", "expert_ffn", "shared_ffn", "window_period", "score_width",
        "score_softcap", "logit_softcap", "sliding_theta", "score_growth", "rotary_share",
        "short_context", "score_scale", "embedding_factor", "residual_factor", "logit_factor",
        "logit_divisor", "full_head_dim", "full_kv_heads", "position_limit", "sharing",
        "input_width", "input_vocab", "shared_count", "leading_dense", "routed_factor",
        "further_layers", "normed_heads", "growth_context", "q_rank", "kv_rank", "plain_dim",
        "value_dim", "groups", "groups_used", "linear_key_heads", "linear_value_heads",
        "linear_key_dim", "linear_value_dim", "linear_kernel", "attention_interval",
        "rotary_sections", "rotary_channels", "rope_stretch",
    }
)  # fmt: skip
"""Numbers that a table of a family finds in a config."""
COMPUTED_SIZES: Final = frozenset(
    {
        "q_width",
        "kv_width",
        "stated_head_dim",
        "rope_theta",
        "sliding_window",
        "yarn_log",
        "rotary_dim",
        "full_q_width",
        "full_kv_width",
        "usual_score_scale",
        "sharing_ffn",
        "all_inputs",
        "one",
        "shared_width",
        "whole_queries",
        "latent_width",
        "key_dim",
        "turned_dim",
        "query_width",
        "key_value_width",
        "value_width",
        "yarn_log_tenth",
        "gated_q_width",
        "linear_key_width",
        "linear_value_width",
        "linear_group_width",
        "linear_channels",
        "linear_gates",
    }
)
"""Sizes that follow from others, or are read in a way of their own."""
