"""How a config says that positions are rotated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.model.config_numbers import count, real

ROPE_KEYS: Final = (
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "original_max_position_embeddings",
)  # fmt: skip
"""Keys of a config that say how positions are rotated."""
_CONTEXT: Final = "original_max_position_embeddings"
_OUTER: Final = ("yarn", "llama3")
"""Kinds of scaling that take the original context from beside them, too."""
FULL: Final = "full_attention"
_SCALING_NUMBERS: Final = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
)  # fmt: skip
_SCALING_NEEDS: Final = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_OLDER_LONGROPE: Final = ("su", "yarn")
"""What configs with factors for every frequency called that scaling before."""


def rope_parameters(config: Mapping[str, Any], *, by_kind: bool = False) -> dict[str, Any]:
    """What a config says of scaled rotations, ``rope_theta`` among it where it is inside.

    transformers takes ``rope_scaling`` before ``rope_parameters`` where both are there. Where
    kinds of layers have parameters of their own, those of layers that see everything count; for
    families that have them so (``by_kind``) nothing else in ``rope_parameters`` does.
    """
    plain = None if by_kind and is_flat(config) else config.get("rope_parameters")
    found = config.get("rope_scaling") or plain or {}
    if isinstance(found, Mapping) and isinstance(found.get(FULL), Mapping):
        found = found[FULL]
    elif by_kind and _has_kinds(found):
        found = {}
    return dict(found) if isinstance(found, Mapping) else {}


def is_flat(config: Mapping[str, Any]) -> bool:
    """Whether there are ``rope_parameters``, and none of kinds of layers."""
    found = config.get("rope_parameters")
    return isinstance(found, Mapping) and bool(found) and not _has_kinds(found)


def _has_kinds(found: Any) -> bool:
    return isinstance(found, Mapping) and any(isinstance(v, Mapping) for v in found.values())


def rope_type(parameters: Mapping[str, Any]) -> str:
    """The kind of scaling of :func:`rope_parameters`, lower case; ``default`` for none."""
    kind = parameters.get("rope_type", parameters.get("type"))
    found = "default" if kind is None else str(kind).lower()
    return "longrope" if found in _OLDER_LONGROPE and "long_factor" in parameters else found


def rotation(
    config: Mapping[str, Any], where: str, *, by_kind: bool = False
) -> tuple[float, Mapping[str, Any] | None]:
    """Read ``rope_theta`` + ``rope_scaling``, or transformers 5's ``rope_parameters``."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) and not isinstance(config[key], Mapping):
            raise InvalidInput(f"{where}: {key} should be an object, found {config[key]!r}")
    scaling = rope_parameters(config, by_kind=by_kind)
    kind = rope_type(scaling)
    given = scaling.pop("rope_theta", None)
    theta = real("rope_theta", config.get("rope_theta") if given is None else given, where)
    rest = {k: v for k, v in scaling.items() if k not in ("rope_type", "type")}
    if kind == "default":
        return theta, None
    rest = _filled(kind, rest, config)
    _check_scaling(kind, rest, where)
    return theta, {"rope_type": kind, **rest}


def _filled(kind: str, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """With what transformers takes from the config itself where the scaling is silent."""
    found, outer = dict(scaling), config.get(_CONTEXT)
    if kind in _OUTER and outer is not None:
        found.setdefault(_CONTEXT, outer)
    before, context = found.get(_CONTEXT), config.get("max_position_embeddings")
    if isinstance(before, float) and before.is_integer():
        found[_CONTEXT] = before = int(before)
    numbers = type(before) is int and type(context) is int and before > 0
    if kind == "yarn" and "factor" in found and found["factor"] is None and numbers:
        assert isinstance(context, int)
        assert isinstance(before, int)
        found["factor"] = context / before
    return found


def _check_scaling(kind: str, scaling: Mapping[str, Any], where: str) -> None:
    """Raises InvalidInput for parameters that are no numbers, or missing."""
    for key in _SCALING_NUMBERS:
        if scaling.get(key) is not None:
            zero = key.startswith("mscale")
            real(f"rope_scaling.{key}", scaling[key] or (1 if zero else 0), where)
    for key in _SCALING_NEEDS.get(kind, ()):
        if scaling.get(key) is None:
            raise InvalidInput(f"{where}: rope_scaling of type {kind} should have a {key}")
    if _CONTEXT in scaling:  # a null is none of transformers' ways of leaving it out
        key = f"rope_scaling.{_CONTEXT}"
        count({key: scaling[_CONTEXT]}, key, where)
    if kind == "llama3" and not scaling["high_freq_factor"] > scaling["low_freq_factor"]:
        raise InvalidInput(
            f"{where}: rope_scaling.high_freq_factor should be above low_freq_factor, found "
            f"{scaling['high_freq_factor']!r} and {scaling['low_freq_factor']!r}"
        )


def stretched(
    theta: float, scaling: Mapping[str, Any] | None, alpha: float | None, head_dim: int
) -> tuple[float, Mapping[str, Any] | None]:
    """Rotations whose base is multiplied by a power of ``alpha``, whatever the length of a text,
    though configs call them dynamic."""
    if alpha is None or scaling is None or scaling["rope_type"] != "dynamic":
        return theta, scaling
    return float(theta * alpha ** (head_dim / (head_dim - 2))), None


def check_share(share: float, head_dim: int, scaling: Mapping[str, Any] | None, where: str) -> None:
    """Raises InvalidInput for channels that are no pairs, or that factors do not fit."""
    rotated = int(head_dim * share)
    if not 0 < share <= 1 or rotated % 2 or not rotated:
        raise InvalidInput(
            f"{where}: partial_rotary_factor {share:g} of a head of {head_dim} is {rotated} "
            "channels; it should be from 0 to 1 and their number even"
        )
    if scaling is None or scaling["rope_type"] != "longrope":
        return
    for key in _SCALING_NEEDS["longrope"]:
        factors = scaling[key]
        if not isinstance(factors, list) or len(factors) != rotated // 2:
            size = len(factors) if isinstance(factors, list) else factors
            raise InvalidInput(
                f"{where}: rope_scaling.{key} should be {rotated // 2} factors, found {size!r:.100}"
            )
        for factor in factors:
            real(f"rope_scaling.{key}", factor, where)


def longrope_amplitude(scaling: Mapping[str, Any], context: int, original: int) -> float:
    """What transformers multiplies cosines and sines of longrope by, in texts of any length."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    factor = float(scaling.get("factor") or context / original)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
