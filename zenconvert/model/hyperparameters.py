"""The numbers that define a decoder model, read from a config and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.model.config_numbers import at_path, count, real
from zenconvert.model.rotations import FULL, check_share, rotation

Names = Mapping[str, str | Sequence[str]]
"""Size → the key that a config has it under, or several of which the first that is there counts;
dots lead into objects."""
_MOST_LISTED: Final = 1 << 16
"""Layers that are told apart one by one, before anybody has counted tensors."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
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
    short_context: int = 0
    """Tokens of a text up to which the short factors of longrope hold; 0 where there are none."""
    sliding_theta: float | None = None
    """Base of the rotations in layers with a window, where they have plain ones of their own."""
    score_growth: float | None = None
    """b in 1 + b · ln(1 + ⌊position / original context⌋), by which queries are multiplied."""

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
    def original_context(self) -> int:
        """Tokens of the texts before rotations were scaled."""
        scaling = self.rope_scaling or {}
        return int(scaling.get("original_max_position_embeddings") or self.context)

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
    nullable |= {str(names[size]) for size in ("score_softcap", "logit_softcap") if size in names}
    given = {k: v for k, v in config.items() if v is not None or k in nullable}
    merged = {**defaults, **given}
    sizes = _Sizes(given, merged, names, where)
    heads, kv_heads, head_dim = _heads(sizes)
    theta, scaling = rotation(merged, where, by_kind="sliding_theta" in names)
    kinds = layers or {}
    mixture = "mixture" not in kinds or bool(merged.get(kinds["mixture"]))
    experts = sizes.count("experts", zero=not kinds.get("mixture"), optional=True) if mixture else 0
    share = sizes.real("rotary_share") or 1.0
    check_share(share, head_dim, scaling, where)
    keyed = bool(merged.get(kinds.get("keyed", "")))
    full_kv_heads = sizes.full_kv_heads(keyed=keyed)
    if full_kv_heads and heads % full_kv_heads:
        raise InvalidInput(
            f"{where}: {heads} heads are no multiple of the {full_kv_heads} key-value heads of "
            "layers that see everything"
        )
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
        experts_used=sizes.count("experts_used", zero=True, optional=True) if experts else 0,
        expert_ffn=sizes.count("expert_ffn", optional=True) if experts else 0,
        shared_ffn=sizes.count("shared_ffn", zero=True, optional=True),
        sliding_window=_sliding_window(merged, where, told="use_sliding_window" in defaults),
        window_period=sizes.period(),
        score_width=sizes.real("score_width") or float(head_dim),
        score_softcap=sizes.real("score_softcap"),
        logit_softcap=sizes.real("logit_softcap"),
        dense_layers=_dense_layers(merged, kinds, sizes, where),
        rotary_share=share,
        short_context=sizes.count("short_context", optional=True),
        sliding_theta=sizes.real("sliding_theta"),
        score_growth=sizes.real("score_growth", zero=True),
        score_scale=sizes.real("score_scale"),
        embedding_factor=sizes.real("embedding_factor"),
        residual_factor=sizes.real("residual_factor"),
        logit_factor=sizes.real("logit_factor"),
        logit_divisor=sizes.real("logit_divisor"),
        full_head_dim=sizes.count("full_head_dim", optional=True),
        full_kv_heads=full_kv_heads,
        full_layers=_full_layers(merged, kinds, sizes, where),
        keyed=keyed,
        sharing=_sharing(merged, kinds, sizes, where),
        wide_ffn=2 * sizes.count("ffn") if merged.get(kinds.get("wide", "")) else 0,
        input_width=sizes.count("input_width", zero=True, optional=True),
        input_vocab=sizes.count("input_vocab", optional=True),
        position_limit=sizes.count("position_limit", optional=True),
    )


def _heads(sizes: _Sizes) -> tuple[int, int, int]:
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


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a config by the names that a family's table gives."""

    given: Mapping[str, Any]
    """What the config itself says."""
    config: Mapping[str, Any]
    """With defaults."""
    names: Names
    where: str

    def found(self, size: str) -> tuple[str, Any]:
        """The key that a size is under, and its value or None."""
        names = self.names.get(size, size)
        keys = (names,) if isinstance(names, str) else tuple(names)
        for config in (self.given, self.config):
            for key in keys:
                if (value := at_path(config, key)) is not None:
                    return key, value
        return keys[0], None

    def real(self, size: str, *, zero: bool = False) -> float | None:
        """A positive number; None where the config or the family has none, or where it has a
        ``zero`` that says so. Raises InvalidInput."""
        if size not in self.names:
            return None
        key, value = self.found(size)
        if value is None or (zero and value == 0):
            return None
        return real(key, value, self.where)

    def count(
        self, size: str, *, zero: bool = False, optional: bool = False, silent: bool = False
    ) -> int:
        """A whole number. Raises InvalidInput.

        0 where the size is ``optional`` and the family has none, or where a config may be
        ``silent`` on it and is.
        """
        if optional and size not in self.names:
            return 0
        key, value = self.found(size)
        if silent and value is None:
            return 0
        if zero and value is None and key in self.config:
            return 0
        return count({key: value}, key, self.where, zero=zero)

    def full_kv_heads(self, *, keyed: bool) -> int:
        """Key-value heads of layers that see everything, 0 where a config has none of their own:
        transformers reads the plain key of it only where their values are keys."""
        names = self.names.get("full_kv_heads", ())
        listed = (names,) if isinstance(names, str) else tuple(names)
        inside = tuple(n for n in listed if keyed or "." in n)
        if not inside:
            return 0
        own = replace(self, names={**self.names, "full_kv_heads": inside})
        return own.count("full_kv_heads", silent=True)

    def period(self) -> int:
        """Layers of which the last sees everything, a number or L for every other and then G; 0
        where the config has none. Raises InvalidInput."""
        value = self.found("window_period")[1]
        if isinstance(value, str) and value == "L" * (len(value) - 1) + "G":
            return len(value)
        return self.count("window_period", optional=True, silent=True, zero=True)


def _dense_layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: _Sizes, where: str
) -> tuple[int, ...]:
    """Layers that a list names, and all but every so many-th one; all without experts."""
    if "dense" not in keys:
        return ()
    layers = sizes.count("layers")
    if layers > _MOST_LISTED:
        raise InvalidInput(f"{where}: {layers} layers; at most {_MOST_LISTED} can be told apart")
    if not sizes.count("experts", zero=True):
        return tuple(range(layers))
    listed, step = config.get(keys["dense"]) or [], keys["sparse_step"]
    if not isinstance(listed, list) or not all(type(n) is int for n in listed):
        raise InvalidInput(f"{where}: {keys['dense']} should be a list of layers, found {listed!r}")
    period, named = count(config, step, where), set(listed)
    return tuple(i for i in range(layers) if i in named or (i + 1) % period)


def _sharing(config: Mapping[str, Any], keys: Mapping[str, str], sizes: _Sizes, where: str) -> int:
    """Last layers that read keys and values of earlier ones; there has to be one of each kind."""
    count = sizes.count("sharing", zero=True, optional=True)
    if not count:
        return 0
    types = config[keys["types"]]
    first = len(types) - count
    if first < 1 or not set(types[first:]) <= set(types[:first]):
        raise InvalidInput(
            f"{where}: {sizes.found('sharing')[0]} {count} of {len(types)} layers leaves none "
            f"whose keys and values {sorted(set(types[max(first, 0) :]))} could read"
        )
    return count


def _full_layers(
    config: Mapping[str, Any], keys: Mapping[str, str], sizes: _Sizes, where: str
) -> tuple[int, ...]:
    """Layers that see everything, where tables tell them from those with a window.

    What a config has of single layers has to be of these, and of all of them.
    """
    if "types" not in keys:
        return ()
    types, layers = config.get(keys["types"]), sizes.count("layers")
    if not isinstance(types, list) or len(types) != layers:
        raise InvalidInput(
            f"{where}: {keys['types']} should name the kinds of {layers} layers, found "
            f"{types!r:.100}"
        )
    found = tuple(i for i, kind in enumerate(types) if kind == FULL)
    if (own := config.get(keys["own"])) is not None:
        start = f"{keys['own']}.*."
        names = (n for of in sizes.names.values() for n in ([of] if isinstance(of, str) else of))
        known = {n.removeprefix(start) for n in names if n.startswith(start)}
        rows = list(own.values()) if isinstance(own, Mapping) else [None]
        alike = all(isinstance(r, Mapping) and set(r) <= known and r == rows[0] for r in rows)
        if not alike or {str(layer) for layer in own} != {str(layer) for layer in found}:
            raise InvalidInput(
                f"{where}: {keys['own']} should say one thing of {sorted(known)} in every layer "
                f"that sees everything and in no other, found {own!r:.200}"
            )
    return found


def _sliding_window(config: Mapping[str, Any], where: str, *, told: bool) -> int | None:
    """``told``: the family has a flag that says whether the window is used; others ignore it."""
    unused = told and config.get("use_sliding_window") is False
    if config.get("sliding_window") is None or unused:
        return None
    return count(config, "sliding_window", where)
