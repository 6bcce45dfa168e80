"""Rotary-embedding scaling ↔ GGUF.

Linear and YaRN scaling are key/values. Llama-3 scaling is a tensor of per-frequency factors,
``rope_freqs.weight`` f32[head_dim / 2], and its four parameters are stored nowhere: reading solves
for them and accepts only parameters that reproduce every factor bit for bit.

YaRN multiplies cosines and sines: transformers by ``attention_factor``, or what follows from
``mscale`` and ``mscale_all_dim``, or 0.1·ln(factor) + 1; llama.cpp by that last number times the
key ``rope.scaling.attn_factor``, divided by 0.1·m·ln(factor) + 1 for the architectures that read m
from ``rope.scaling.yarn_log_multiplier``. The keys ``yarn_attn_factor`` and ``yarn_ext_factor`` are
read for no architecture that is known here, ``yarn_beta_fast`` and ``yarn_beta_slow`` for some.

Source: ``set_gguf_parameters`` and ``LlamaModel.generate_extra_tensors`` of the converter,
``load_hparams`` and the constructor of ``llama_context`` in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.model.gguf_family import GgufFamily
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.rotations import longrope_amplitude

FREQS: Final = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
"""Factors of longrope for texts longer than the original context, and for others."""
DERIVED: Final = (FREQS, LONG, SHORT)
_FACTOR: Final = "rope.scaling.attn_factor"
ORIGINAL: Final = "rope.scaling.original_context_length"

_YARN: Final = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
_LOG: Final = "rope.scaling.yarn_log_multiplier"
_BETAS: Final = {"beta_fast": 32.0, "beta_slow": 1.0}
KINDS: Final = ("default", "linear", "yarn", "dynamic")
"""Scalings that are key/values, or that llama.cpp leaves away."""
FACTORS: Final = "llama3"
"""The scaling that is a tensor of factors."""
PROPORTIONAL: Final = "proportional"
"""Rotations of a share of every head's frequencies, which is such a tensor, too."""
_STILL: Final = np.float32(1e30)
"""What the frequencies of all others are divided by."""
LONGROPE: Final = "longrope"
"""The scaling that is two such tensors, and a key."""


class _Keys(Protocol):
    def text(self, key: str, default: str | None = None) -> str: ...
    def real(self, key: str, default: float | None = None) -> float: ...
    def integer(self, key: str, default: int | None = None) -> int: ...

    @property
    def metadata(self) -> Mapping[str, KeyValue]: ...

    @property
    def prefix(self) -> str: ...


def scaling_keys(hp: Hyperparameters, family: GgufFamily) -> dict[str, KeyValue]:
    """``rope.scaling.*`` key/values. Raises Unsupported where llama.cpp has no keys."""
    scaling = hp.rope_scaling
    grown: dict[str, KeyValue] = {}
    if hp.score_growth and hp.original_context != hp.context:
        grown[ORIGINAL] = ("u32", hp.original_context)
    if scaling is None or scaling["rope_type"] in {FACTORS, "dynamic", LONGROPE, PROPORTIONAL}:
        return grown
    kind = scaling["rope_type"]
    if kind not in KINDS:
        raise Unsupported(f"rope scaling {dict(scaling)} cannot be expressed in GGUF")
    factor = float(scaling["factor"])
    keys: dict[str, KeyValue] = {
        "rope.scaling.type": ("str", kind),
        "rope.scaling.factor": ("f32", factor),
    }
    if kind == "yarn":
        context = scaling.get("original_max_position_embeddings", hp.context)
        keys[ORIGINAL] = ("u32", int(context))
        usual = _usual(family, factor, hp.yarn_log or 0.0)
        share = float(np.float32(_amplitude(scaling, factor) / usual))
        for ours, theirs in _YARN.items():
            if ours == "attention_factor" and share != 1.0:
                continue  # llama.cpp reads it nowhere, and the key that it reads says it all
            if (value := scaling.get(ours)) is not None:
                keys[f"rope.scaling.{theirs}"] = ("f32", float(value))
        if share != 1.0:
            keys[_FACTOR] = ("f32", share)
    return keys if kind == "yarn" else keys | grown


def first_keys(hp: Hyperparameters) -> dict[str, KeyValue]:
    """The key of longrope, which the converter writes before all that it has of a model."""
    if not long_factors(hp):
        return {}
    amplitude = longrope_amplitude(hp.rope_scaling or {}, hp.context, hp.short_context)
    return {_FACTOR: ("f32", amplitude)}


def long_factors(hp: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """The two tensors of longrope, f32[rotated channels / 2]; none for other rotations."""
    scaling = hp.rope_scaling
    if scaling is None or scaling["rope_type"] != LONGROPE:
        return {}
    lists = {LONG: scaling["long_factor"], SHORT: scaling["short_factor"]}
    return {name: np.array(values, dtype=np.float32) for name, values in lists.items()}


def longrope_from_file(
    keys: _Keys, factors: Mapping[str, NDArray[np.float32]], hp: Hyperparameters
) -> dict[str, Any]:
    """The config's ``rope_scaling`` from both tensors; reals as the shortest decimals.

    ``type`` is what transformers 4 looks for in these models, and 5 takes as well.
    """
    found = {
        key: [float(str(value)) for value in factors[name]]
        for key, name in (("long_factor", LONG), ("short_factor", SHORT))
    }
    scaling: dict[str, Any] = {"type": LONGROPE, **found}
    usual = np.float32(longrope_amplitude(found, hp.context, hp.short_context))
    given = keys.real(_FACTOR, 1.0)
    return scaling if np.float32(given) == usual else {**scaling, "attention_factor": given}


def _usual_amplitude(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llamacpp_amplitude(factor: float, log_multiplier: float) -> float:
    """What llama.cpp multiplies them by where no key says otherwise."""
    under = _usual_amplitude(factor, log_multiplier) if log_multiplier else 1.0
    return _usual_amplitude(factor) / under


def _usual(family: GgufFamily, factor: float, log: float) -> float:
    """The same for a family, where a config has ``log`` as ``mscale_all_dim``."""
    if family.has_key("yarn_log_tenth"):
        return 1.0 if log else _usual_amplitude(factor)
    return _llamacpp_amplitude(factor, log if family.has_key("yarn_log") else 0.0)


def _amplitude(scaling: Mapping[str, Any], factor: float) -> float:
    """What transformers multiplies cosines and sines by."""
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if over and under:
        return _usual_amplitude(factor, over) / _usual_amplitude(factor, under)
    return _usual_amplitude(factor)


def lossy_scaling(hp: Hyperparameters, family: GgufFamily) -> Iterator[tuple[str, Any, str]]:
    """Parameters that llama.cpp does not read: name, value, and what that means."""
    scaling = hp.rope_scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "dynamic":
        yield (
            "rope_type", "dynamic",
            f"llama.cpp does not scale: the same up to {hp.context} tokens, other rotations beyond",
        )  # fmt: skip
    if scaling["rope_type"] == LONGROPE and hp.context > hp.short_context:
        yield (
            "rope_type", LONGROPE,
            f"llama.cpp takes the long factors for texts of any length once it has room for more "
            f"than {hp.short_context} tokens, and the short ones before",
        )  # fmt: skip
    if scaling["rope_type"] != "yarn":
        return
    for name, usual in () if family.yarn_betas else _BETAS.items():
        value = scaling.get(name) or usual
        if float(value) != usual:
            yield name, value, f"llama.cpp takes {usual:g} for this architecture"
    if (
        family.has_key("yarn_log_tenth")
        and (amplitude := _amplitude(scaling, scaling["factor"])) != 1
    ):
        yield (
            "mscale", scaling.get("mscale"),
            f"cosines and sines are multiplied by {amplitude:.4g}, and llama.cpp multiplies scores "
            "by its square besides",
        )  # fmt: skip
    if ends_first(hp):
        yield (
            "original_max_position_embeddings", hp.original_context,
            "the scaling would end before it begins, and llama.cpp lets it do both in one place",
        )  # fmt: skip
    if not scaling.get("truncate", True):
        yield "truncate", False, "llama.cpp rounds where the scaling begins and ends"


def scaling_from_keys(
    keys: _Keys, family: GgufFamily
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The config's ``rope_scaling`` from key/values as llama.cpp takes them, None for none.

    Also the keys that change what is computed and that no config can say.
    """
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 0.0)) or 1.0
    share = keys.real("rope.scaling.attn_factor", 1.0)
    strange: dict[str, Any] = {}
    whole = kind == "linear" and factor == 1
    known = {"none", *({"linear", "yarn"} & family.scalings)}
    # layers that slide are scaled by the factor all the same
    half = kind == "none" and factor != 1 and family.window_period > 0
    if (kind not in known and not whole) or half:
        strange[f"{keys.prefix}rope.scaling.type"] = kind
    if kind != "yarn" and share != 1:
        strange[f"{keys.prefix}rope.scaling.attn_factor"] = share
    if strange or kind == "none" or whole:
        return None, strange
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original_context(keys)
        tenth, whole_log = family.has_key("yarn_log_tenth"), family.has_key("yarn_log")
        under = keys.real(_LOG, 0.0) if tenth or whole_log else 0.0
        under = float(f"{10 * under:.7g}") if tenth else under
        usual = _usual(family, factor, under)
        for ours, theirs in _YARN.items():
            if f"{keys.prefix}rope.scaling.{theirs}" in keys.metadata:
                value = keys.real(f"rope.scaling.{theirs}")
                # others change nothing in llama.cpp
                if family.yarn_betas or value == _BETAS.get(ours, value):
                    scaling[ours] = value
        if under:
            scaling |= {"mscale": under if tenth else 1.0, "mscale_all_dim": under}
        told = scaling.pop("attention_factor", None)  # by a key that is not read
        if told is not None and np.float32(told / usual) == np.float32(share):
            scaling["attention_factor"] = usual if share == 1 else told
        elif share != 1:
            scaling["attention_factor"] = share * usual
        if tenth and _amplitude(scaling, factor) != 1:  # scores, too, by its square
            strange[f"{keys.prefix}{_LOG}"] = keys.real(_LOG, 0.0)
    return scaling, strange


def ends_first(hp: Hyperparameters) -> bool:
    """Whether YaRN begins at channels behind those where it ends, as for very short contexts:
    transformers then scales the other way round, and llama.cpp does not."""
    scaling = hp.rope_scaling or {}
    if scaling.get("rope_type") != "yarn" or hp.rope_theta == 1:
        return False
    size, before = hp.rotary_dim, scaling.get("original_max_position_embeddings") or hp.context

    def place(name: str) -> float:
        turns = 2 * math.pi * float(scaling.get(name) or _BETAS[name])
        return size * math.log(before / turns) / (2 * math.log(hp.rope_theta))

    first, last = math.floor(place("beta_fast")), math.ceil(place("beta_slow"))
    return min(last, size - 1) < max(first, 0)


def original_context(keys: _Keys) -> int:
    """Tokens of the texts before rotations were scaled, as llama.cpp takes it."""
    return keys.integer(ORIGINAL, 0) or keys.integer("context_length")


def frequency_factors(hp: Hyperparameters, family: GgufFamily) -> NDArray[np.float32] | None:
    """``rope_freqs`` f32[head_dim / 2] of a Llama-3 style or proportional scaling, None for others.

    Graphs that know the second take no file without. Raises InvalidInput for numbers that make
    none.
    """
    scaling = hp.rope_scaling
    if scaling is None and PROPORTIONAL in family.scalings:
        scaling = {"rope_type": PROPORTIONAL}
    if scaling is not None and scaling["rope_type"] == PROPORTIONAL:
        size = hp.full_head_dim or hp.head_dim
        turning = int((scaling.get("partial_rotary_factor") or 1.0) * size // 2)
        found = np.full(size // 2, _STILL, dtype=np.float32)
        found[:turning] = scaling.get("factor") or 1.0
        return found
    if scaling is None or scaling["rope_type"] != "llama3":
        return None
    with np.errstate(all="ignore"):
        factors = _llama3_factors(
            _frequencies(hp.rope_theta, hp.head_dim),
            float(scaling.get("factor", 8.0)),
            float(scaling.get("low_freq_factor", 1.0)),
            float(scaling.get("high_freq_factor", 4.0)),
            float(hp.original_context),
        )
    if not np.isfinite(factors).all():
        raise InvalidInput(
            f"rotary embeddings of rope_theta {hp.rope_theta} and {dict(scaling)} have no finite "
            "factors; check these values of the config"
        )
    return factors


def share_from_factors(factors: NDArray[np.float32]) -> dict[str, Any] | None:
    """The scaling that divides some frequencies by one factor and lets the others stand still."""
    turning = int(np.count_nonzero(factors != _STILL))
    factor = float(str(factors[0])) if len(factors) else 0.0
    if not turning or not (factors[:turning] == factors[0]).all() or factor <= 0:
        return None
    if turning == len(factors) and factor == 1:
        return {"rope_type": "default"}
    found = {"rope_type": PROPORTIONAL, "partial_rotary_factor": turning / len(factors)}
    return found if factor == 1 else {**found, "factor": factor}


def _frequencies(theta: float, head_dim: int) -> NDArray[np.float32]:
    """Rotations per position. torch's float32 power decides the last bit, so torch computes it."""
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies: NDArray[np.float32] = (1.0 / (theta**exponents)).numpy()
    return frequencies


def _llama3_factors(
    frequencies: NDArray[np.float32], factor: float, low: float, high: float, context: float
) -> NDArray[np.float32]:
    """The converter's arithmetic: float32, and number / tensor as reciprocal times number."""
    f32 = np.float32
    wavelengths = f32(1) / frequencies * f32(2 * math.pi)
    smooth = (f32(1) / wavelengths * f32(context) - f32(low)) / f32(high - low)
    between = f32(1) / ((f32(1) - smooth) / f32(factor) + smooth)
    # the bounds are compared as doubles
    double = wavelengths.astype(np.float64)
    factors = np.where(double > context / low, f32(factor), between)
    return np.where(double < context / high, f32(1), factors).astype(np.float32)


def scaling_from_factors(
    factors: NDArray[np.float32], theta: float, head_dim: int
) -> dict[str, Any] | None:
    """Llama-3 parameters that reproduce ``factors`` exactly, None where there are none.

    Only the ratios of the original context and the two frequency factors show in the factors, so
    ``low_freq_factor`` is taken as 1 as every published model has it.
    """
    frequencies = _frequencies(theta, head_dim)
    factor = float(factors.max()) if len(factors) else 1.0

    def fits(high: float, context: float) -> bool:
        return np.array_equal(_llama3_factors(frequencies, factor, 1.0, high, context), factors)

    candidates = [(4.0, 8192.0), *_solve(factors, frequencies, factor)]
    for high, context in candidates:
        if len(factors) == head_dim // 2 and fits(high, context):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(context),
            }
    return None


def _solve(
    factors: NDArray[np.float32], frequencies: NDArray[np.float32], factor: float
) -> list[tuple[float, float]]:
    """Candidates ``(high, context)`` from the factors between 1 and ``factor``.

    There, 1/f = (1-s)/factor + s with s = (context·frequency/2π - 1) / (high - 1), a straight line
    in the frequency: its slope and intercept give both unknowns.
    """
    between = (factors > 1) & (factors < factor)
    if between.sum() < 2:
        highs = (2.0, 4.0, 8.0, 16.0, 32.0)
        return [(high, float(1 << power)) for high in highs for power in range(4, 21)]
    x = frequencies[between].astype(np.float64) / (2 * math.pi)
    smooth = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    slope, intercept = np.polyfit(x, smooth, 1)
    high = 1 - 1 / float(intercept)
    return [(float(round(high, 3)), float(round(float(slope) * (high - 1))))]
