"""Every family once: a tiny config as its releases spell it, and as transformers 5 does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.tiny import CONFIGS

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A family of models."""

    config: Config
    """As released: the spelling of transformers 4. Layers cover two periods of every pattern."""
    tokenizer: str = "llama3"
    """A maker of ``tests.tokenizers_for_tests``."""
    pre: str = "llama-bpe"
    """What llama.cpp calls its pre-tokenizer."""
    llamacpp: float = 1e-3
    """How far llama.cpp's logits may be off, in their deviations: its GELU is a table of f16."""
    solved: float = 0.5
    """How far its logits may be off in four bits, of their norm; 1.4 is what any others are."""
    queries: float = 1.0
    """What their norm multiplies queries by. Where a model does not scale scores itself, released
    norms do; otherwise the least change of a weight changes everything."""
    states: float = 1.0
    """What norms before feed-forward networks are multiplied by: clamps are of large numbers."""
    converter: tuple[str, ...] = ()
    """Options that llama.cpp's converter needs."""
    onnx: bool = True
    """A graph can be written."""
    refusal: str = "model_type is "
    """What its refusal says where none can."""
    lost: tuple[str, ...] = ()
    """Facts that GGUF files do not hold for llama.cpp."""
    optional: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Other values that fields of its own may have."""


def _sizes(model_type: str, architecture: str, **own: Any) -> Config:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **own,
    }


def _layer_norms(model_type: str, architecture: str, **own: Any) -> Config:
    """Of a family whose norms take the mean away."""
    config = _sizes(model_type, architecture, **own)
    del config["rms_norm_eps"]
    return config


def _gemma4(**own: Any) -> Config:
    config = _sizes(
        "gemma4_text", "Gemma4ForCausalLM", num_hidden_layers=6, head_dim=16,
        num_attention_heads=16, num_key_value_heads=4, global_head_dim=32,
        num_global_key_value_heads=2, attention_k_eq_v=True,
        layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2,
        sliding_window=16, final_logit_softcapping=3.0, attention_bias=False,
        hidden_activation="gelu_pytorch_tanh", hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=512, num_kv_shared_layers=0, enable_moe_block=False,
        use_double_wide_mlp=False, num_experts=None, top_k_experts=None,
        moe_intermediate_size=None, use_bidirectional_attention="vision", pad_token_id=0,
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": {
                "rope_type": "proportional", "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )  # fmt: skip
    return {k: v for k, v in config.items() if k not in ("rope_theta", "hidden_act")} | own


def _hybrid(model_type: str, architecture: str, **own: Any) -> Config:
    """Of Qwen3.5: linear attention in three of four layers."""
    config = _sizes(
        model_type, architecture, num_hidden_layers=8, head_dim=64, attention_bias=False,
        attention_dropout=0.0, attn_output_gate=True, full_attention_interval=4,
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 2,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=128,
        linear_value_head_dim=128, linear_conv_kernel_dim=4, mamba_ssm_dtype="float32",
        partial_rotary_factor=0.25,
        rope_parameters={
            "mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default",
            "rope_theta": 10000000, "partial_rotary_factor": 0.25,
        },
    )  # fmt: skip
    left = {"rope_theta", "intermediate_size"} if "num_experts" in own else {"rope_theta"}
    return {k: v for k, v in config.items() if k not in left} | own


FAMILIES: dict[str, Family] = {
    "qwen2": Family(CONFIGS["qwen2"], "qwen2", "qwen2"),
    "llama3": Family(CONFIGS["llama3"]),
    "mistral": Family(CONFIGS["mistral"], "mistral", "mistral"),
    "mixtral": Family(CONFIGS["mixtral"], "mixtral", "mixtral"),
    "qwen3": Family(
        _sizes(
            "qwen3", "Qwen3ForCausalLM", head_dim=128, attention_bias=False,
            use_sliding_window=False, sliding_window=None, max_window_layers=2,
        ),
        "qwen2", "qwen2",
    ),
    "qwen3_moe": Family(
        _sizes(
            "qwen3_moe", "Qwen3MoeForCausalLM", head_dim=128, attention_bias=False,
            num_experts=6, num_experts_per_tok=3, moe_intermediate_size=128, norm_topk_prob=True,
            decoder_sparse_step=1, mlp_only_layers=[], output_router_logits=False,
            router_aux_loss_coef=0.001, use_sliding_window=False, sliding_window=None,
            max_window_layers=2,
        ),
        "qwen2", "qwen2",
    ),
    "qwen2_moe": Family(
        _sizes(
            "qwen2_moe", "Qwen2MoeForCausalLM", num_experts=6, num_experts_per_tok=3,
            moe_intermediate_size=128, shared_expert_intermediate_size=256, norm_topk_prob=False,
            decoder_sparse_step=1, mlp_only_layers=[], output_router_logits=False,
            router_aux_loss_coef=0.001, use_sliding_window=False, sliding_window=512,
            max_window_layers=2, qkv_bias=True,
        ),
        "qwen2", "qwen2",
    ),
    "qwen3_next": Family(
        _sizes(
            "qwen3_next", "Qwen3NextForCausalLM", num_hidden_layers=8, head_dim=64,
            attention_bias=False, partial_rotary_factor=0.25, rope_scaling=None,
            full_attention_interval=4, linear_num_key_heads=2, linear_num_value_heads=4,
            linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128,
            shared_expert_intermediate_size=128, norm_topk_prob=True, decoder_sparse_step=1,
            mlp_only_layers=[], output_router_logits=False, router_aux_loss_coef=0.001,
            use_sliding_window=False,
        ),
        "qwen2", "qwen2", onnx=False, refusal="none of linear attention", converter=("--no-mtp",),
        solved=0.9,  # rounding to 8 bits moves logits a seventeenth of what 4 bits do
    ),
    "qwen3_5": Family(
        _hybrid(
            "qwen3_5_text", "Qwen3_5ForCausalLM", mlp_only_layers=[], tie_word_embeddings=True,
        ),
        "qwen2", "qwen2", onnx=False, refusal="none of linear attention", converter=("--no-mtp",),
        solved=0.9,
    ),
    "qwen3_5_moe": Family(
        _hybrid(
            "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=128, shared_expert_intermediate_size=128,
            output_router_logits=False, router_aux_loss_coef=0.001,
        ),
        "qwen2", "qwen2", onnx=False, refusal="none of linear attention", converter=("--no-mtp",),
        solved=0.9,
    ),
    "minimax_m2": Family(
        _sizes(
            "minimax_m2", "MiniMaxM2ForCausalLM", head_dim=64, intermediate_size=128,
            rotary_dim=32, num_local_experts=6, num_experts_per_tok=3, attn_type_list=[1, 1],
            scoring_func="sigmoid", use_qk_norm=True, qk_norm_type="per_layer",
            use_routing_bias=True, shared_intermediate_size=0, shared_moe_mode="sigmoid",
            layernorm_full_attention_beta=1.0, layernorm_linear_attention_beta=1.0,
            layernorm_mlp_beta=1.0, mlp_intermediate_size=8192, use_mtp=True, num_mtp_modules=3,
            mtp_transformer_layers=1, router_aux_loss_coef=0.001, router_jitter_noise=0.0,
            output_router_logits=False, sliding_window=None, rope_theta=5000000,
        ),
        "qwen2", "qwen2",
    ),
    "seed_oss": Family(
        _sizes(
            "seed_oss", "SeedOssForCausalLM", head_dim=128, attention_bias=True,
            attention_out_bias=False, mlp_bias=False, residual_dropout=0.1, attention_dropout=0.1,
            rope_scaling={"rope_type": "default"}, pretraining_tp=1, pad_token_id=1,
        ),
    ),
    "ernie4_5": Family(
        _sizes(
            "ernie4_5", "Ernie4_5ForCausalLM", head_dim=128, use_bias=False, pad_token_id=0,
            tie_word_embeddings=True,
        ),
        "mixtral", "mixtral",
    ),
    "ministral3": Family(
        _sizes(
            "ministral3", "Ministral3ForCausalLM", head_dim=128, sliding_window=None,
            pad_token_id=11,
            rope_parameters={
                "beta_fast": 16.0, "beta_slow": 2.0, "factor": 16.0,
                "llama_4_scaling_beta": 0.3, "max_position_embeddings": 512, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 16,
                "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
            },
        ),
        "mistral", "mistral",
    ),
    "olmo2": Family(
        _sizes(
            "olmo2", "Olmo2ForCausalLM", attention_bias=False, rms_norm_eps=1e-6, pad_token_id=1,
            rope_scaling=None, rope_theta=500000.0,
        ),
    ),
    "olmo3": Family(
        _sizes(
            "olmo3", "Olmo3ForCausalLM", attention_bias=False, num_hidden_layers=8,
            rope_theta=500000.0, sliding_window=16, pad_token_id=1, hidden_size=256,
            layer_types=["sliding_attention"] * 3 + ["full_attention"] + (
                ["sliding_attention"] * 3 + ["full_attention"]
            ),
            rope_scaling={
                "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
                "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
            },
        ),
    ),
    "exaone4": Family(
        _sizes(
            "exaone4", "Exaone4ForCausalLM", head_dim=64, sliding_window=None,
            sliding_window_pattern=None, layer_types=["full_attention"] * 2, rms_norm_eps=1e-5,
            tie_word_embeddings=True, pad_token_id=0,
            rope_scaling={
                "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
            },
        ),
    ),
    "exaone4_64": Family(  # llama.cpp tells by the number of layers whether they have windows
        _sizes(
            "exaone4", "Exaone4ForCausalLM", hidden_size=64, intermediate_size=64, head_dim=16,
            num_hidden_layers=64, sliding_window=16, sliding_window_pattern="LLLG",
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 16, pad_token_id=0,
        ),
    ),
    "phi": Family(  # llama.cpp wants other tokens of models whose name says phi3
        _sizes(
            "phi3", "Phi3ForCausalLM", num_attention_heads=2, num_key_value_heads=1,
            partial_rotary_factor=0.75, rope_scaling=None, sliding_window=2047,
            attention_bias=False, original_max_position_embeddings=512, resid_pdrop=0.0,
            embd_pdrop=0.0, pad_token_id=0, rope_theta=10000.0,
        ),
        "mixtral", "mixtral",
    ),
    "phi_longrope": Family(
        _sizes(
            "phi3", "Phi3ForCausalLM", num_attention_heads=2, num_key_value_heads=2,
            partial_rotary_factor=0.75, sliding_window=262144, attention_bias=False,
            original_max_position_embeddings=256, resid_pdrop=0.0, embd_pdrop=0.0, pad_token_id=0,
            rope_theta=10000.0, tie_word_embeddings=True, full_attn_mod=1, interpolate_factor=1,
            rope_scaling={
                "type": "longrope",
                "long_factor": [round(1 + 0.37 * i, 2) for i in range(48)],
                "short_factor": [round(1 + 0.01 * i, 2) for i in range(48)],
            },
        ),
        "mixtral", "mixtral", lost=("rope_scaling.rope_type",),
    ),
    "glm4": Family(
        _sizes(
            "glm4", "Glm4ForCausalLM", head_dim=64, attention_bias=True, attention_dropout=0.0,
            partial_rotary_factor=0.5, rope_theta=10000.0, rms_norm_eps=1e-5, pad_token_id=0,
        ),
        "glm4", "glm4",
    ),
    "glm4_moe": Family(
        _sizes(
            "glm4_moe", "Glm4MoeForCausalLM", head_dim=64, attention_bias=True,
            attention_dropout=0.0, partial_rotary_factor=0.5, rope_theta=1000000, rope_scaling=None,
            rms_norm_eps=1e-5, pad_token_id=0, num_hidden_layers=3, first_k_dense_replace=1,
            n_routed_experts=6, num_experts_per_tok=3, n_shared_experts=1, n_group=1,
            topk_group=1, moe_intermediate_size=128, norm_topk_prob=True, use_qk_norm=False,
            routed_scaling_factor=1.5, num_nextn_predict_layers=0,
        ),
        "glm4", "glm4",
    ),
    "deepseek_v3": Family(
        _sizes(
            "deepseek_v3", "DeepseekV3ForCausalLM", num_attention_heads=4, num_key_value_heads=4,
            q_lora_rank=256, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32,
            v_head_dim=96, num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=8,
            num_experts_per_tok=4, n_shared_experts=1, n_group=4, topk_group=3,
            moe_intermediate_size=256, moe_layer_freq=1, norm_topk_prob=True,
            scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=2.5,
            rope_theta=10000, num_nextn_predict_layers=0, ep_size=1, attention_bias=False,
            attention_dropout=0.0, aux_loss_alpha=0.001, seq_aux=True, pretraining_tp=1,
            pad_token_id=0,
            rope_scaling={
                "beta_fast": 32, "beta_slow": 1, "factor": 8, "mscale": 1.0, "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 64, "type": "yarn",
            },
        ),
        "deepseek_v3", "deepseek-v3",
    ),
    "deepseek_v2": Family(  # llama.cpp tells by the number of layers what queries are made of
        _sizes(
            "deepseek_v2", "DeepseekV2ForCausalLM", num_attention_heads=4, num_key_value_heads=4,
            hidden_size=128, intermediate_size=256, q_lora_rank=None, kv_lora_rank=64,
            qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=48, num_hidden_layers=26,
            first_k_dense_replace=24, n_routed_experts=6, num_experts_per_tok=3,
            n_shared_experts=2, n_group=1, topk_group=1, moe_intermediate_size=64,
            moe_layer_freq=1, norm_topk_prob=False, scoring_func="softmax", topk_method="greedy",
            routed_scaling_factor=1.5, rope_theta=10000, ep_size=1, attention_bias=False,
            attention_dropout=0.0, aux_loss_alpha=0.001, seq_aux=True, pretraining_tp=1,
            pad_token_id=0,
            rope_scaling={
                "beta_fast": 32, "beta_slow": 1, "factor": 8, "mscale": 0.707,
                "mscale_all_dim": 0.707, "original_max_position_embeddings": 64, "type": "yarn",
            },
        ),
        "deepseek_llm", "deepseek-llm",
    ),
    "dots1": Family(
        _sizes(
            "dots1", "Dots1ForCausalLM", num_key_value_heads=4, num_hidden_layers=3,
            attention_bias=False, attention_dropout=0.0, first_k_dense_replace=1,
            n_routed_experts=6, num_experts_per_tok=3, n_shared_experts=2, n_group=1, topk_group=1,
            moe_intermediate_size=128, moe_layer_freq=1, norm_topk_prob=True, ep_size=1,
            routed_scaling_factor=2.5, scoring_func="sigmoid", rms_norm_eps=1e-5,
            rope_scaling=None, rope_theta=10000000, sliding_window=None, max_window_layers=3,
            pretraining_tp=1,
        ),
        "qwen2", "qwen2",
    ),
    "olmoe": Family(
        _sizes(
            "olmoe", "OlmoeForCausalLM", num_key_value_heads=4, attention_bias=False,
            attention_dropout=0.0, clip_qkv=None, num_experts=6, num_experts_per_tok=3,
            intermediate_size=256, norm_topk_prob=False, output_router_logits=False,
            router_aux_loss_coef=0.01,
            rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0, pad_token_id=1,
        ),
    ),
    "arcee": Family(
        _sizes(
            "arcee", "ArceeForCausalLM", attention_bias=False, attention_dropout=0.0,
            hidden_act="relu2", mlp_bias=False, head_dim=32, rms_norm_eps=1e-5,
            rope_theta=10000.0, pad_token_id=0,
            rope_scaling={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "rope_type": "yarn",
                "original_max_position_embeddings": 64,
            },
        ),
    ),
    "glm4_moe_lite": Family(
        _sizes(
            "glm4_moe_lite", "Glm4MoeLiteForCausalLM", num_key_value_heads=4, hidden_size=128,
            intermediate_size=256, q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=48,
            qk_rope_head_dim=16, v_head_dim=64, num_hidden_layers=3, first_k_dense_replace=1,
            n_routed_experts=6, num_experts_per_tok=3, n_shared_experts=1, n_group=1,
            topk_group=1, moe_intermediate_size=64, norm_topk_prob=True, scoring_func="sigmoid",
            topk_method="noaux_tc", routed_scaling_factor=1.8, num_nextn_predict_layers=0,
            attention_bias=False, attention_dropout=0.0, partial_rotary_factor=1.0,
            rope_scaling=None, rms_norm_eps=1e-5, pad_token_id=0,
        ),
        "glm4", "glm4", lost=("rms_norm_eps",),
    ),
    "ernie4_5_moe": Family(
        _sizes(
            "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", num_hidden_layers=3, use_bias=False,
            moe_num_experts=6, moe_k=3, moe_num_shared_experts=2, moe_layer_start_index=1,
            moe_layer_end_index=-1, moe_layer_interval=1, moe_intermediate_size=128,
            moe_capacity=[6, 6, 6], moe_gate="topk", moe_use_aux_free=True, rope_scaling=None,
            num_nextn_predict_layers=1, pad_token_id=0, rope_theta=500000.0,
            tie_word_embeddings=True,
        ),
        "mixtral", "mixtral",
    ),
    "hunyuan_v1_dense": Family(
        _sizes(
            "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=128, attention_bias=False,
            attention_dropout=0.0, mlp_bias=False, use_qk_norm=True, use_cla=False,
            norm_type="rms", rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
            tie_word_embeddings=True, pad_token_id=0,
            eod_token_id=1198,  # which the converter takes for the end of texts
        ),
        "deepseek_v3", "hunyuan-dense",
    ),
    "granite": Family(
        _sizes(
            "granite", "GraniteForCausalLM", attention_bias=False, mlp_bias=False,
            rope_scaling=None, attention_multiplier=0.2, embedding_multiplier=12.0,
            residual_multiplier=0.22, logits_scaling=8.0, pad_token_id=0,
            tie_word_embeddings=True,
        ),
    ),
    "granitemoe": Family(
        _sizes(
            "granitemoe", "GraniteMoeForCausalLM", attention_bias=False, rope_scaling=None,
            attention_multiplier=0.2, embedding_multiplier=12.0, residual_multiplier=0.22,
            logits_scaling=8.0, pad_token_id=0, num_local_experts=6, num_experts_per_tok=3,
            intermediate_size=128, output_router_logits=False, router_aux_loss_coef=0.001,
            tie_word_embeddings=True,
        ),
    ),
    "granitemoeshared": Family(
        _sizes(
            "granitemoeshared", "GraniteMoeSharedForCausalLM", attention_bias=False,
            rope_scaling=None, attention_multiplier=0.2, embedding_multiplier=12.0,
            residual_multiplier=0.22, logits_scaling=8.0, pad_token_id=0, num_local_experts=6,
            num_experts_per_tok=3, intermediate_size=128, shared_intermediate_size=256,
            output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=True,
        ),
    ),
    "cohere": Family(
        _layer_norms(
            "cohere", "CohereForCausalLM", layer_norm_eps=1e-5, logit_scale=0.5,
            attention_bias=False, use_qk_norm=False, model_max_length=1024, pad_token_id=0,
            tie_word_embeddings=True,
        ),
    ),
    "cohere2": Family(
        _layer_norms(
            "cohere2", "Cohere2ForCausalLM", num_hidden_layers=8, layer_norm_eps=1e-5,
            logit_scale=0.5, attention_bias=False, head_dim=64, sliding_window=16,
            sliding_window_pattern=4, rotary_pct=1.0, layer_switch=4,
            order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj",
            rope_scaling=None, use_embedding_sharing=True, use_gated_activation=True,
            use_parallel_block=True, use_parallel_embedding=False, cache_implementation="hybrid",
            pad_token_id=0, tie_word_embeddings=True, rope_theta=50000,
        ),
    ),
    "starcoder2": Family(
        _layer_norms(
            "starcoder2", "Starcoder2ForCausalLM", norm_epsilon=1e-5, use_bias=True,
            hidden_act="gelu_pytorch_tanh", sliding_window=None, norm_type="layer_norm",
            mlp_type="default", residual_dropout=0.1, embedding_dropout=0.1,
            tie_word_embeddings=True,
        ),
        llamacpp=1e-2,
    ),
    "stablelm": Family(
        _layer_norms(
            "stablelm", "StableLmForCausalLM", layer_norm_eps=1e-5, partial_rotary_factor=0.25,
            use_qkv_bias=True, rope_theta=10000,
        ),
        "qwen2", "qwen2",
    ),
    "gpt_oss": Family(
        _sizes(
            "gpt_oss", "GptOssForCausalLM", num_hidden_layers=4, head_dim=64,
            intermediate_size=128, num_local_experts=6, num_experts_per_tok=3,
            experts_per_token=3, attention_bias=True, attention_dropout=0.0, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2, swiglu_limit=7.0,
            rms_norm_eps=1e-5, rope_theta=150000, initial_context_length=64, pad_token_id=0,
            output_router_logits=False, router_aux_loss_coef=0.9,
            rope_scaling={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "rope_type": "yarn",
                "original_max_position_embeddings": 64,
            },
        ),
        "o200k", "gpt-4o", states=4.0,
        lost=("tokenizer.json",),
    ),
    "smollm3": Family(
        _sizes(
            "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=8, attention_bias=False,
            mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0, 1, 1, 1, 0],
            rope_scaling=None, use_sliding_window=False, sliding_window=None,
            tie_word_embeddings=True, layer_types=["full_attention"] * 8, pretraining_tp=2,
            pad_token_id=0,
        ),
    ),
    "gemma2": Family(
        _sizes(
            "gemma2", "Gemma2ForCausalLM", num_hidden_layers=4, head_dim=128,
            query_pre_attn_scalar=128, sliding_window=16, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, hidden_act="gelu_pytorch_tanh",
            hidden_activation="gelu_pytorch_tanh", cache_implementation="hybrid",
            attention_bias=False, rope_theta=10000.0, tie_word_embeddings=True, pad_token_id=0,
        ),
        "gemma", "default", llamacpp=1e-2,
    ),
    "gemma3": Family(
        _sizes(
            "gemma3_text", "Gemma3ForCausalLM", num_hidden_layers=12, head_dim=128,
            query_pre_attn_scalar=128, sliding_window=16, sliding_window_pattern=6,
            attn_logit_softcapping=None, final_logit_softcapping=None,
            hidden_activation="gelu_pytorch_tanh", cache_implementation="hybrid",
            attention_bias=False, rope_theta=1000000.0, rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0}, tie_word_embeddings=True,
            pad_token_id=0,
        ),
        "gemma", "default", llamacpp=1e-2,
    ),
    "gemma4": Family(
        _gemma4(),
        "gemma4", "default", llamacpp=1e-2, queries=0.25,
    ),
    "gemma4_e2b": Family(  # the last layers read keys and values of others; inputs of every layer
        _gemma4(
            attention_k_eq_v=False, num_global_key_value_heads=None, num_kv_shared_layers=3,
            use_double_wide_mlp=True, hidden_size_per_layer_input=128,
        ),
        "gemma4", "default", llamacpp=1e-2, queries=0.25,
    ),
    "gemma4_moe": Family(  # experts beside the feed-forward network
        _gemma4(enable_moe_block=True, num_experts=6, top_k_experts=3, moe_intermediate_size=128),
        "gemma4", "default", llamacpp=1e-2, queries=0.25,
    ),
}  # fmt: skip

SHALLOW = [n for n, family in FAMILIES.items() if family.config["num_hidden_layers"] < 64]
"""Families whose logits rounding does not drown in so many random layers."""


def in_transformers_5(config: Config) -> Config:
    """The config as the transformers that is installed saves it."""
    from transformers import AutoConfig

    fields = {k: v for k, v in config.items() if k not in {"model_type", "architectures"}}
    saved: Config = AutoConfig.for_model(config["model_type"], **fields).to_dict()
    return {**saved, "architectures": config["architectures"]}


def one_period(config: Config) -> Config:
    """The same model with one period of the pattern of its layers, where there is no more to it."""
    layers = config["num_hidden_layers"]
    if layers < 4 or config.get("num_kv_shared_layers"):
        return config
    left = layers // 2
    cut = {k: v[:left] for k, v in config.items() if isinstance(v, list) and len(v) == layers}
    return {**config, "num_hidden_layers": left, **cut}


def shuffled(config: Config, seed: int) -> Config:
    """The same config with its keys in another order."""
    keys = list(config)
    random.Random(seed).shuffle(keys)
    return {key: config[key] for key in keys}
