"""Rotary embeddings: frequencies of a config, and tables of cosines and sines.

Source: ``modeling_rope_utils.py`` of transformers, with torch's float32 arithmetic, which decides
the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.model.architecture import Architecture
from zenconvert.model.encoding import Dense
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.rotations import longrope_amplitude

if TYPE_CHECKING:
    import torch

TABLES: Final = ("cos_cache", "sin_cache")
"""Names of the tables in graphs that have them."""
LONG_TABLES: Final = ("cos_cache_long", "sin_cache_long")
"""Those of texts that are longer than the original context, where these rotate in another way."""
SLIDING_TABLES: Final = ("cos_cache_sliding", "sin_cache_sliding")
"""Those of layers that slide, where they rotate in a way of their own."""
KINDS: Final = ("default", "linear", "llama3", "yarn")
"""Scalings that tables can hold."""
PROPORTIONAL: Final = "proportional"
"""That which lets the last channels of both halves of a head stand still; of families whose kinds
of layers have rotations of their own."""
LONGROPE: Final = "longrope"
"""That with other frequencies for texts that are longer than the original context."""
_BAND: Final = 4096
"""Positions of a table that are computed at a time."""
_LARGEST: Final = 2.0**128
"""Float32 ends below."""
_PERIOD: Final = 4
"""Layers of which the last does not rotate, in families where three of four do."""


def rotated(architecture: Architecture, windows: Sequence[int | None]) -> list[bool]:
    """Whether every layer rotates positions, or has none; ``windows`` of the layers."""
    rule, slides = architecture.block.rotates, [size is not None for size in windows]
    if rule == "sliding" or (rule == "sliding_or_all" and any(slides)):
        return slides
    if rule != "three_of_four":
        return [True] * len(slides)
    return [(layer + 1) % _PERIOD != 0 for layer in range(len(slides))]


def of_sliding(hp: Hyperparameters) -> Hyperparameters | None:
    """Sizes with the rotations of layers that slide; None where all layers rotate alike."""
    if hp.sliding_theta is None:
        return None
    return replace(hp, rope_theta=hp.sliding_theta, rope_scaling=None)


def of_full(hp: Hyperparameters) -> Hyperparameters:
    """Sizes with the rotations of layers that see everything."""
    return replace(hp, head_dim=hp.full_head_dim) if hp.full_head_dim else hp


def scalings(architecture: Architecture) -> tuple[str, ...]:
    """Scalings that tables can hold for a family."""
    found = [*KINDS, *([PROPORTIONAL] if architecture.has_rotations_by_kind else [])]
    return (*found, *([LONGROPE] if "short_context" in architecture.names else []))


def border(hp: Hyperparameters) -> int:
    """Tokens up to which texts are rotated in one way, and longer ones in another; 0 for none."""
    return hp.length_border if hp.length_border < hp.context else 0


@dataclass(frozen=True, slots=True)
class Table:
    """The cosines and sines that some layers read."""

    names: tuple[str, str]
    hp: Hyperparameters
    """Sizes that they are computed from."""
    long: bool = False
    """Of texts beyond the border."""

    @property
    def shape(self) -> tuple[int, int]:
        """Positions, and half of the channels that are rotated."""
        rows = 0 if self.long else border(self.hp)
        return (rows or self.hp.context, self.hp.rotary_dim // 2)


def tables_of(hp: Hyperparameters, windows: Sequence[int | None]) -> list[Table]:
    """Every table that some layer reads."""
    sliding = of_sliding(hp)
    if sliding is None:
        return [Table(TABLES, hp), *([Table(LONG_TABLES, hp, long=True)] if border(hp) else [])]
    found = [Table(TABLES, of_full(hp))] if None in windows else []
    return [*found, *([Table(SLIDING_TABLES, sliding)] if any(windows) else [])]


def frequencies(hp: Hyperparameters, *, long: bool = False) -> tuple[NDArray[np.float32], float]:
    """Rotations per position float32[rotated channels / 2], and the factor of cosines and sines;
    ``long``: of texts beyond the border.

    Raises Unsupported for scalings whose frequencies depend on the length of the text, InvalidInput
    for numbers that make none.
    """
    scaling = hp.rope_scaling or {"rope_type": "default"}
    try:
        values, amplitude = _frequencies(hp, scaling, long=long)
    except (ArithmeticError, ValueError):
        values, amplitude = np.array([], dtype=np.float32), math.nan
    if not (np.isfinite(values).all() and abs(amplitude) < _LARGEST):
        raise InvalidInput(
            f"rotary embeddings of rope_theta {hp.rope_theta} and {dict(scaling)} have no finite "
            "frequencies; check these values of the config"
        )
    return values, amplitude


def _frequencies(
    hp: Hyperparameters, scaling: Mapping[str, Any], *, long: bool
) -> tuple[NDArray[np.float32], float]:
    import torch

    size = hp.rotary_dim
    powers = hp.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    plain = 1.0 / powers
    kind, factor = scaling["rope_type"], float(scaling.get("factor") or 1.0)
    amplitude = 1.0
    if kind == "linear":
        plain = plain / factor
    elif kind == "llama3":
        plain = _llama3(plain, factor, scaling, hp.context)
    elif kind == "yarn":
        plain, amplitude = _yarn(hp, factor, scaling)
    elif kind == PROPORTIONAL:
        turning = int(float(scaling.get("partial_rotary_factor") or 1.0) * size // 2)
        plain[turning:] = 0
        plain = plain / factor
    elif kind == LONGROPE:
        factors = torch.tensor(scaling[f"{'long' if long else 'short'}_factor"])
        plain = 1.0 / (factors.to(torch.float32) * powers)
        amplitude = longrope_amplitude(scaling, hp.context, hp.short_context)
    elif kind != "default":
        raise Unsupported(
            f"rotary embeddings of type {kind!r} cannot be put into a graph; known are "
            f"{', '.join(KINDS)}"
        )
    values: NDArray[np.float32] = plain.numpy()
    return values, amplitude


def values_of(table: Table, floats: Dense) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosines and sines of every position, in the shape of the table."""
    rates, amplitude = frequencies(table.hp, long=table.long)
    factor, rows = np.float32(amplitude), table.shape[0]
    cosines, sines = (np.empty(table.shape, floats.numpy) for _ in TABLES)
    for begin in range(0, rows, _BAND):
        here = slice(begin, min(begin + _BAND, rows))
        angles = np.arange(here.start, here.stop, dtype=np.float32)[:, None] * rates
        cosines[here], sines[here] = np.cos(angles) * factor, np.sin(angles) * factor
    return cosines, sines


def _original_context(scaling: Mapping[str, Any], context: int) -> float:
    return float(scaling.get("original_max_position_embeddings") or context)


def _llama3(
    plain: torch.Tensor, factor: float, scaling: Mapping[str, Any], context: int
) -> torch.Tensor:
    """Low frequencies divided by the factor, high ones kept, a smooth passage between them."""
    import torch

    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    before = _original_context(scaling, context)
    wavelengths = 2 * math.pi / plain
    scaled = torch.where(wavelengths > before / low, plain / factor, plain)
    smooth = (before / wavelengths - low) / (high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    middle = (wavelengths >= before / high) & (wavelengths <= before / low)
    return torch.where(middle, between, scaled)


def _yarn(
    hp: Hyperparameters, factor: float, scaling: Mapping[str, Any]
) -> tuple[torch.Tensor, float]:
    """Frequencies between divided and plain by a ramp over the dimensions, and the amplitude."""
    import torch

    size, theta = hp.rotary_dim, hp.rope_theta
    before = _original_context(scaling, hp.context)

    def dimension(rotations: float) -> float:
        return size * math.log(before / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension(scaling.get("beta_fast") or 32)
    last = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = last - first or 0.001
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    powers = theta ** (torch.arange(0, size, 2).to(torch.float32) / size)
    kept = 1 - ramp
    mixed = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept
    return mixed, _yarn_amplitude(factor, scaling)


def score_factor(hp: Hyperparameters) -> float:
    """What scores are multiplied by beside the size of heads where keys are made of shorter rows
    and YaRN says so: the square of its amplitude."""
    scaling = hp.rope_scaling or {}
    if not hp.kv_rank or not hp.yarn_log or scaling["factor"] <= 1:
        return 1.0
    return float(0.1 * hp.yarn_log * math.log(scaling["factor"]) + 1.0) ** 2


def _yarn_amplitude(factor: float, scaling: Mapping[str, Any]) -> float:
    if (given := scaling.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return scale(over) / scale(under) if over and under else scale(1)
