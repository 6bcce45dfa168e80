"""The codebooks of the IQ1, IQ2 and IQ3 types: points of a lattice in 8 or 4 dimensions.

``grids.npz`` holds one array u16[points] per codebook (``iq1`` serves IQ1_S and IQ1_M). A point is
stored as the level numbers of its coordinates, coordinate k in bits ``k * bits`` and up: 2 bits in
8 dimensions, 3 bits in 4. They are the tables ``iq*_grid`` of ggml-common.h, whose bytes are the
levels themselves, and equal the ``kgrid_*`` codes of ggml-quants.c.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVELS: Final[dict[str, tuple[int, ...]]] = {
    "iq1": (-1, 0, 1),
    "iq2_xxs": (8, 25, 43),
    "iq2_xs": (8, 25, 43),
    "iq2_s": (8, 25, 43),
    "iq3_xxs": (4, 12, 20, 28, 36, 44, 52, 62),
    "iq3_s": (1, 3, 5, 7, 9, 11, 13, 15),
}
"""Values of a coordinate, by level number."""


def codes(name: str) -> NDArray[np.uint16]:
    """The stored codes u16[points] of one codebook."""
    with (files(__package__) / "grids.npz").open("rb") as file, np.load(file) as grids:
        stored: NDArray[np.uint16] = grids[name]
    return stored


@cache
def points(name: str) -> NDArray[np.float32]:
    """The points of one codebook, f32[points, dimensions]; read-only."""
    bits, dimensions = (3, 4) if name.startswith("iq3") else (2, 8)
    numbers = codes(name)[:, None] >> (bits * np.arange(dimensions)) & ((1 << bits) - 1)
    coordinates: NDArray[np.float32] = np.array(LEVELS[name], dtype=np.float32)[numbers]
    coordinates.flags.writeable = False
    return coordinates


def signs() -> NDArray[np.uint8]:
    """u8[128]: eight signs (1 is negative) from seven bits; the eighth makes their number even."""
    seven = np.arange(128, dtype=np.uint8)
    ones = np.unpackbits(seven[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    eight: NDArray[np.uint8] = seven | (ones & np.uint8(1)) << np.uint8(7)
    return eight
