"""The numbers that define a decoder model, read from a config and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zenconvert.errors import InvalidInput
from zenconvert.model.config_numbers import count, real
from zenconvert.model.config_sizes import Names, Sizes, dense_layers, full_layers, sharing_layers
from zenconvert.model.linear_attention import LinearAttention, linear_sizes
from zenconvert.model.rotations import check_share, rotation, stretched


@dataclass(frozen=True, slots=True)
class Hyperparameters(LinearAttention):
    """Sizes and constants of a dense or mixture-of-experts decoder."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    head_dim: int
    """Elements per attention head."""
    explicit_head_dim: bool
    """True when the config states head_dim rather than leaving it to hidden / heads."""
    rms_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    """``rope_type`` and its parameters; None for plain rotary embeddings."""
    tied: bool
    experts: int = 0
    experts_used: int = 0
    expert_ffn: int = 0
    """Inner size of an expert, where it has one of its own."""
    sliding_window: int | None = None
    window_period: int = 0
    """The config's: the last of so many layers sees everything; 0 where it has none."""
    score_width: float = 0.0
    """Scores are divided by its root; the head size in most families."""
    score_softcap: float | None = None
    """c in c · tanh(scores / c)."""
    logit_softcap: float | None = None
    """c in c · tanh(logits / c)."""
    shared_ffn: int = 0
    """Inner size of the expert that every token reaches, where there is one."""
    one: int = 1
    """Rows of a matrix that gives one number."""
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture that have one network in place of experts."""
    rotary_share: float = 1.0
    """How much of a head is rotated: its first channels."""
    rotary_sections: tuple[int, ...] = ()
    """Pairs of these channels that rotate by each dimension of positions; all are one in texts."""
    short_context: int = 0
    """Tokens of a text up to which the short factors of longrope hold; 0 where there are none."""
    sliding_theta: float | None = None
    """Base of the rotations in layers with a window, where they have plain ones of their own."""
    score_growth: float | None = None
    """b in 1 + b · ln(1 + ⌊position / original context⌋), by which queries are multiplied."""
    growth_context: int = 0
    """That original context, where a config has it; 0 for that of scaled rotations."""

    @property
    def stated_head_dim(self) -> int | None:
        """The head size, where the config says it."""
        return self.head_dim if self.explicit_head_dim else None

    score_scale: float | None = None
    """What scores are multiplied by, where it is not what follows from ``score_width``."""
    embedding_factor: float | None = None
    """What embeddings are multiplied by."""
    residual_factor: float | None = None
    """What the result of a half of a layer is multiplied by before it is added."""
    logit_factor: float | None = None
    logit_divisor: float | None = None
    full_head_dim: int = 0
    """Elements per attention head in layers that see everything, where others have another size; 0
    where all have one."""
    full_kv_heads: int = 0
    """Key-value heads in these layers, where the config says it of them."""
    full_layers: tuple[int, ...] = ()
    """These layers, where they have other tensors than those with a window."""
    keyed: bool = False
    """Values are keys in layers that see everything."""
    sharing: int = 0
    """Last layers that read keys and values of earlier ones, of the last of their kind."""
    wide_ffn: int = 0
    """Inner size of the feed-forward network in these layers, where they have another one."""
    input_width: int = 0
    """Elements of what every layer is given of every token beside hidden states."""
    input_vocab: int = 0
    """Tokens of which there is such an input."""
    position_limit: int = 0
    """What a config gives as the longest text beside ``context``, which counts."""
    shared_count: int = 0
    """Experts that every token reaches, side by side in one of their widths together."""
    leading_dense: int = 0
    """First layers of a mixture that have one network in place of experts."""
    routed_factor: float | None = None
    """What the weights of experts that were chosen are multiplied by."""
    normed_heads: int = 0
    """1 where q and k are normed head by head in a family some of whose models do that."""
    further_layers: int = 0
    """Layers behind the last that predict further tokens, and that nobody here computes."""

    q_rank: int = 0
    """Numbers that queries are made of; 0 where they are made of the states themselves."""
    kv_rank: int = 0
    """Numbers that keys and values of all heads are made of, where they are: a cache has these, and
    a key of all heads that is rotated, ``head_dim`` of them."""
    plain_dim: int = 0
    """Elements of queries and keys that are not rotated, before those that are."""
    value_dim: int = 0
    """Elements of a value."""
    groups: int = 0
    """Groups of experts, of which a token is sent to some."""
    groups_used: int = 0

    @property
    def whole_queries(self) -> int:
        """1 where queries are made of the states themselves."""
        return int(not self.q_rank)

    @property
    def latent_width(self) -> int:
        """What keys and values are made of, and the key of all heads."""
        return self.kv_rank + self.head_dim

    @property
    def turned_dim(self) -> int:
        """Elements of a query or key that are rotated, behind those that are not."""
        return self.head_dim

    @property
    def key_dim(self) -> int:
        """Elements of a query or key."""
        return self.plain_dim + self.head_dim

    @property
    def query_width(self) -> int:
        """Outputs of what makes all queries."""
        return self.heads * self.key_dim

    @property
    def key_value_width(self) -> int:
        """Outputs of what makes keys, as far as they are not rotated, and values."""
        return self.heads * (self.plain_dim + self.value_dim)

    @property
    def value_width(self) -> int:
        """What attention puts out."""
        return self.heads * self.value_dim

    @property
    def gated_q_width(self) -> int:
        """Outputs of a query projection that gives every query a gate."""
        return 2 * self.q_width

    @property
    def shared_width(self) -> int:
        """Inner size of all experts that every token reaches."""
        return self.shared_ffn or self.shared_count * self.expert_ffn

    @property
    def usual_score_scale(self) -> float:
        """What scores are multiplied by where nothing else is said."""
        return float(self.score_width**-0.5)

    @property
    def yarn_log(self) -> float | None:
        """``mscale_all_dim`` of YaRN: weight of the logarithm that its amplitude is divided by."""
        scaling = self.rope_scaling or {"rope_type": "default"}
        return scaling.get("mscale_all_dim") if scaling["rope_type"] == "yarn" else None

    @property
    def yarn_log_tenth(self) -> float | None:
        """A tenth of it, as one architecture of GGUF has it."""
        found = self.yarn_log
        return None if found is None else 0.1 * found

    @property
    def original_context(self) -> int:
        """Tokens of the texts before rotations were scaled."""
        told = (self.rope_scaling or {}).get("original_max_position_embeddings")
        return int(self.growth_context or told or self.context)

    def number(self, size: str) -> float | None:
        """A size by its name; None for one that the model does not have."""
        value: float | None = getattr(self, size)
        return value or None

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return int(self.head_dim * self.rotary_share)

    @property
    def sharing_ffn(self) -> int:
        """Inner size of the feed-forward network in layers that read others' keys and values."""
        return self.wide_ffn or self.ffn

    @property
    def all_inputs(self) -> int:
        """Elements of what all layers are given of a token beside hidden states."""
        return self.layers * self.input_width

    @property
    def full_q_width(self) -> int:
        """Outputs of the query projection in layers that see everything."""
        return self.heads * self.full_head_dim

    @property
    def full_kv_width(self) -> int:
        """Outputs of the key projection in these layers."""
        return (self.full_kv_heads or self.kv_heads) * self.full_head_dim

    @property
    def length_border(self) -> int:
        """Tokens beyond which a text is rotated otherwise, all of it; 0 where none is."""
        longrope = self.rope_scaling is not None and self.rope_scaling["rope_type"] == "longrope"
        return self.short_context if longrope else 0

    @property
    def q_width(self) -> int:
        """Outputs of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Outputs of the key and of the value projection."""
        return self.kv_heads * self.head_dim


def from_config(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    names: Names,
    *,
    where: str,
    layers: Mapping[str, str] | None = None,
) -> Hyperparameters:
    """Read the sizes of a ``config.json``, with ``defaults`` where a key is absent.

    ``layers`` are the keys that say which layers of a mixture are dense. ``where`` names the file
    in error messages. Raises InvalidInput for a missing, ill-typed or
    impossible value.
    """
    # null means "none" and "as many as query heads" there, whatever the default is
    nullable = {"sliding_window", names["kv_heads"]}
    none = ("score_softcap", "logit_softcap", "q_rank")
    nullable |= {str(names[size]) for size in none if size in names}
    given = {k: v for k, v in config.items() if v is not None or k in nullable}
    merged = {**defaults, **given}
    sizes = Sizes(given, merged, names, where)
    heads, kv_heads, head_dim = _heads(sizes)
    theta, scaling = rotation(merged, where, by_kind="sliding_theta" in names)
    theta, scaling = stretched(theta, scaling, sizes.real("rope_stretch"), head_dim)
    kinds = layers or {}
    mixture = "mixture" not in kinds or bool(merged.get(kinds["mixture"]))
    experts = sizes.count("experts", zero=not kinds.get("mixture"), optional=True) if mixture else 0
    channels = sizes.count("rotary_channels", optional=True, silent=True)
    share = channels / head_dim if channels else sizes.real("rotary_share") or 1.0
    check_share(share, head_dim, scaling, where)
    keyed = bool(merged.get(kinds.get("keyed", "")))
    full_kv_heads = sizes.full_kv_heads(keyed=keyed)
    if full_kv_heads and heads % full_kv_heads:
        raise InvalidInput(
            f"{where}: {heads} heads are no multiple of the {full_kv_heads} key-value heads of "
            "layers that see everything"
        )
    plain_dim = sizes.count("plain_dim", optional=True)
    return Hyperparameters(
        layers=sizes.count("layers"),
        hidden=sizes.count("hidden"),
        ffn=sizes.count("ffn"),
        heads=heads,
        kv_heads=kv_heads,
        vocab=sizes.count("vocab"),
        context=sizes.count("context"),
        head_dim=head_dim,
        explicit_head_dim=sizes.found("head_dim")[1] is not None,
        rms_eps=real(*sizes.found("rms_eps"), where),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(merged.get("tie_word_embeddings", False)),
        experts=experts,
        experts_used=sizes.count("experts_used", optional=True) if experts else 0,
        expert_ffn=sizes.count("expert_ffn", optional=True) if experts else 0,
        shared_ffn=sizes.count("shared_ffn", zero=True, optional=True),
        sliding_window=_sliding_window(merged, where, told="use_sliding_window" in defaults),
        window_period=sizes.period(),
        score_width=sizes.real("score_width") or float(head_dim + plain_dim),
        score_softcap=sizes.real("score_softcap"),
        logit_softcap=sizes.real("logit_softcap"),
        dense_layers=dense_layers(merged, kinds, sizes, where),
        rotary_share=share,
        rotary_sections=sizes.counts("rotary_sections"),
        short_context=sizes.count("short_context", optional=True),
        sliding_theta=sizes.real("sliding_theta"),
        score_growth=sizes.real("score_growth", zero=True),
        growth_context=sizes.count("growth_context", optional=True, silent=True),
        score_scale=sizes.real("score_scale"),
        embedding_factor=sizes.real("embedding_factor"),
        residual_factor=sizes.real("residual_factor"),
        logit_factor=sizes.real("logit_factor"),
        logit_divisor=sizes.real("logit_divisor"),
        full_head_dim=sizes.count("full_head_dim", optional=True),
        full_kv_heads=full_kv_heads,
        full_layers=full_layers(merged, kinds, sizes, where),
        keyed=keyed,
        sharing=sharing_layers(merged, kinds, sizes, where),
        wide_ffn=2 * sizes.count("ffn") if merged.get(kinds.get("wide", "")) else 0,
        input_width=sizes.count("input_width", zero=True, optional=True),
        input_vocab=sizes.count("input_vocab", optional=True),
        position_limit=sizes.count("position_limit", optional=True),
        shared_count=sizes.count("shared_count", zero=True, optional=True),
        leading_dense=sizes.count("leading_dense", zero=True, optional=True),
        routed_factor=sizes.real("routed_factor"),
        normed_heads=sizes.flag("normed_heads"),
        further_layers=sizes.count("further_layers", zero=True, optional=True, silent=True),
        q_rank=sizes.count("q_rank", zero=True, optional=True, silent=True),
        kv_rank=sizes.count("kv_rank", optional=True),
        plain_dim=plain_dim,
        value_dim=sizes.count("value_dim", optional=True),
        groups=sizes.count("groups", optional=True, silent=True),
        groups_used=sizes.count("groups_used", optional=True, silent=True),
        **linear_sizes(merged, kinds, sizes, where),
    )


def _heads(sizes: Sizes) -> tuple[int, int, int]:
    """Heads, key-value heads and the size of a head. Raises InvalidInput."""
    heads, hidden = sizes.count("heads"), sizes.count("hidden")
    stated = sizes.found("head_dim")[1] is not None
    head_dim = sizes.count("head_dim", zero=True) if stated else 0
    if not head_dim:
        if hidden % heads:
            raise InvalidInput(
                f"{sizes.where}: hidden_size {hidden} is not a multiple of num_attention_heads "
                f"{heads} and there is no head_dim"
            )
        head_dim = hidden // heads
    kv_heads = sizes.count("kv_heads", zero=True) or heads
    if heads % kv_heads or head_dim % 2:
        raise InvalidInput(
            f"{sizes.where}: {heads} heads, {kv_heads} key-value heads and head size {head_dim} do "
            "not fit together; heads must be a multiple of key-value heads and the size even"
        )
    return heads, kv_heads, head_dim


def _sliding_window(config: Mapping[str, Any], where: str, *, told: bool) -> int | None:
    """``told``: the family has a flag that says whether the window is used; others ignore it."""
    unused = told and config.get("use_sliding_window") is False
    if config.get("sliding_window") is None or unused:
        return None
    return count(config, "sliding_window", where)
