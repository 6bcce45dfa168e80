"""Kinds of layers that tables of families tell apart."""

from __future__ import annotations

from typing import Final

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
