"""Kinds of layers that tables of families tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LAYERS: Final = {
    ("dense", "sparse_step"): ("sparse", "dense"),
    ("first",): ("sparse", "dense"),
    ("types", "own", "keyed", "wide", "mixture"): ("sliding", "full", "values"),
    ("linear", "interval"): ("linear", "full", "sparse"),
}
"""Keys of ``[layers]`` → the kinds of layers that they tell apart: the config's list of layers
without experts, and the period of those with experts, the last of which has them; how many have
none, before all others; or its list of kinds, what it has of single layers that see everything,
whether values are keys there, whether layers that read keys and values of others have feed-forward
networks of twice the size, and whether layers have experts; or that list, or a period, of layers
with linear attention, of which each has experts if any has."""
LIST_RULES: Final = frozenset({"all", "zero_every", "dense_first", "last_layer"})
"""What a list with an entry for every layer may be held to: ``all`` have one value, or 0 in every
so many-th and 1 in others, or the first so many ``dense`` and others ``sparse``. Or a number: the
last layer's, or the one that stands for it."""


def follows(value: Any, rule: Mapping[str, Any], layers: int) -> bool:
    """Whether a list with an entry for every layer, or a layer's number, is as a rule has it."""
    if "last_layer" in rule:
        return value in (rule["last_layer"], layers - 1)
    if not isinstance(value, list) or len(value) != layers:
        return False
    if "all" in rule:
        return all(one == rule["all"] for one in value)
    if (first := rule.get("dense_first")) is not None:
        return value == ["dense"] * first + ["sparse"] * (layers - first)
    period = rule["zero_every"]
    return [bool(one) for one in value] == [(i + 1) % period != 0 for i in range(layers)]
