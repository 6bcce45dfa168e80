"""The numbers that define a decoder model, read from a config and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.errors import InvalidInput

_LIMIT: Final = 1 << 31


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
    sliding_window: int | None = None

    @property
    def q_width(self) -> int:
        """Outputs of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Outputs of the key and of the value projection."""
        return self.kv_heads * self.head_dim


def from_config(
    config: Mapping[str, Any], defaults: Mapping[str, Any], *, where: str
) -> Hyperparameters:
    """Read ``config.json`` keys, with ``defaults`` where a key is absent.

    ``where`` names the file in error messages. Raises InvalidInput for a missing, ill-typed or
    impossible value.
    """
    merged = {**defaults, **{k: v for k, v in config.items() if v is not None}}
    heads = _count(merged, "num_attention_heads", where)
    hidden = _count(merged, "hidden_size", where)
    explicit = "head_dim" in merged
    head_dim = _count(merged, "head_dim", where, zero=True) if explicit else 0
    if not head_dim:
        if hidden % heads:
            raise InvalidInput(
                f"{where}: hidden_size {hidden} is not a multiple of num_attention_heads {heads} "
                "and there is no head_dim"
            )
        head_dim = hidden // heads
    kv_heads = _count(merged, "num_key_value_heads", where, zero=True) or heads
    if heads % kv_heads or head_dim % 2:
        raise InvalidInput(
            f"{where}: {heads} heads, {kv_heads} key-value heads and head size {head_dim} do not "
            "fit together; heads must be a multiple of key-value heads and the size even"
        )
    theta, scaling = _rope(merged, where)
    return Hyperparameters(
        layers=_count(merged, "num_hidden_layers", where),
        hidden=hidden,
        ffn=_count(merged, "intermediate_size", where),
        heads=heads,
        kv_heads=kv_heads,
        vocab=_count(merged, "vocab_size", where),
        context=_count(merged, "max_position_embeddings", where),
        head_dim=head_dim,
        explicit_head_dim=explicit,
        rms_eps=_real(merged, "rms_norm_eps", where),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(merged.get("tie_word_embeddings", False)),
        experts=_count(merged, "num_local_experts", where, zero=True, optional=True),
        experts_used=_count(merged, "num_experts_per_tok", where, zero=True, optional=True),
        sliding_window=_sliding_window(merged, where),
    )


def _count(
    config: Mapping[str, Any], key: str, where: str, *, zero: bool = False, optional: bool = False
) -> int:
    value = config.get(key)
    if value is None and optional:
        return 0
    lowest = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < _LIMIT:
        raise InvalidInput(
            f"{where}: {key} should be an integer from {lowest} to {_LIMIT - 1}, found {value!r}"
        )
    return value


def _real(config: Mapping[str, Any], key: str, where: str) -> float:
    value = config.get(key)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value < float("inf")
    ):
        raise InvalidInput(f"{where}: {key} should be a positive number, found {value!r}")
    return float(value)


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, Mapping[str, Any] | None]:
    """Read ``rope_theta`` + ``rope_scaling``, or transformers 5's ``rope_parameters``."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise InvalidInput(f"{where}: rope_scaling should be an object, found {parameters!r}")
    scaling = dict(parameters)
    theta = _real(
        {"rope_theta": scaling.pop("rope_theta", config.get("rope_theta"))}, "rope_theta", where
    )
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind == "default":
        return theta, None
    return theta, {"rope_type": str(kind).lower(), **scaling}


def _sliding_window(config: Mapping[str, Any], where: str) -> int | None:
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return None
    return _count(config, "sliding_window", where)
