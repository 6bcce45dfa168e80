"""What a layer of a family computes beside its modules: the section ``[block]`` of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

WINDOWS: Final = ("none", "every_layer", "every_layer_if_used", "upper_layers", "pattern")
ROTATES: Final = ("every_layer", "three_of_four", "sliding", "sliding_or_all")
HEAD_NORMS: Final = ("none", "heads", "whole", "turned")
VALUE_NORMS: Final = ("none", "heads")
SCORES: Final = ("scaled", "plain")

RULES: Final[dict[str, Callable[[Any], bool]]] = {
    "genai_types": lambda value: isinstance(value, list),
    "windows": WINDOWS.__contains__,
    "window_period": lambda value: type(value) is int,
    "norm_weights": ("w", "1+w").__contains__,
    "embedding_scale": ("1", "sqrt(hidden)").__contains__,
    "activation": lambda value: isinstance(value, str),
    "activation_module": lambda value: isinstance(value, str),
    "head_norms": HEAD_NORMS.__contains__,
    "value_norms": VALUE_NORMS.__contains__,
    "scores": SCORES.__contains__,
    "rotary": ("halves", "pairs").__contains__,
    "rotates": ROTATES.__contains__,
    "norms": ("rms", "layer").__contains__,
    "halves": ("in_turn", "parallel").__contains__,
    "routing": ("chosen", "all", "sigmoid").__contains__,
    "latent_eps": lambda value: isinstance(value, float),
    "clamped": lambda value: isinstance(value, list) and len(value) in (0, 2),
}
"""Key of ``[block]`` → whether a value is understood."""


@dataclass(frozen=True)
class BlockFeatures:
    """How the layers of a family are built."""

    windows: Literal["none", "every_layer", "every_layer_if_used", "upper_layers", "pattern"]
    """Which layers see a sliding window, where the config has one."""
    window_period: int
    """The last of so many layers sees everything, where there is a pattern and no config's own."""
    rotates: Literal["every_layer", "three_of_four", "sliding", "sliding_or_all"]
    """Which layers rotate positions; ``sliding``: those with a window; ``sliding_or_all``: or all
    where none has."""
    head_norms: Literal["none", "heads", "whole", "turned"]
    """q and k are normed before they are rotated: head by head, or all heads as one; ``turned``:
    head by head after that."""
    norms_values: bool
    """Values are normed head by head, without a weight."""
    scales_scores: bool
    """Scores are divided by the root of the head size, where the config says nothing else."""
    rotary_pairs: bool
    """Neighbouring channels of a head are rotated together, and not those of two halves."""
    layer_norms: bool
    """Norms take the mean away, and are not root mean square norms."""
    parallel: bool
    """Attention and the feed-forward network read the same, and both are added to the stream."""
    norms_add_one: bool
    """Norms multiply by 1 + their weight."""
    scales_embedding: bool
    """Embeddings are multiplied by the root of the hidden size."""
    routes_over_all: bool
    """Experts are weighed by the softmax over all of them, and not over those that were chosen."""
    routes_by_sigmoid: bool
    """Experts are weighed by the sigmoids of their logits, in relation to those of the others that
    were chosen."""
    clamped: tuple[float, ...]
    """Slope and limit of gated networks that compute ``(up + 1) · gate · sigmoid(slope · gate)``,
    with both within the limit; none of others."""
    latent_eps: float
    """Of norms of what queries, keys and values are made of; 0 where there are none."""
    activation_key: str
    """Config key of the function in the feed-forward network."""
    activation_module: str
    """What transformers calls that function in the network."""


def block_features(block: Mapping[str, Any]) -> BlockFeatures:
    """What a checked ``[block]`` says."""
    return BlockFeatures(
        windows=block["windows"],
        window_period=block["window_period"],
        rotates=block["rotates"],
        head_norms=block["head_norms"],
        norms_values=block["value_norms"] == "heads",
        scales_scores=block["scores"] == "scaled",
        rotary_pairs=block["rotary"] == "pairs",
        layer_norms=block["norms"] == "layer",
        parallel=block["halves"] == "parallel",
        norms_add_one=block["norm_weights"] == "1+w",
        scales_embedding=block["embedding_scale"] != "1",
        routes_over_all=block["routing"] == "all",
        routes_by_sigmoid=block["routing"] == "sigmoid",
        clamped=tuple(map(float, block["clamped"])),
        latent_eps=block["latent_eps"],
        activation_key=block["activation"],
        activation_module=block["activation_module"],
    )
