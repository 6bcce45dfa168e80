"""The encoders of the codebook types IQ1, IQ2 and IQ3 write the bytes of llama.cpp's libggml."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.formats.gguf.block_samples import IMPORTANCE, WEIGHTS, importance, weights
from tests.oracles import libggml
from zenconvert.errors import InvalidInput
from zenconvert.ggml import blocks
from zenconvert.ggml.blocks.grids import codes
from zenconvert.ggml.blocks.neighbours import neighbours

TYPES = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
PLAIN = tuple(name for name in TYPES if not blocks.requires_importance(name))
# 21 super-blocks, so one full tile and a part of one, with three to a row
ROWS, COLUMNS = 7, 768


def with_gaps(run: int) -> NDArray[np.float32]:
    """Every other run of weights is zero, in another half of each row."""
    values = weights("gaussian", ROWS, COLUMNS).reshape(ROWS, -1, run)
    values[::2, ::2], values[1::2, 1::2] = 0, 0
    return values.reshape(ROWS, COLUMNS)


def few_values() -> NDArray[np.float32]:
    """Many ties of size, with zeros of both signs among them."""
    choices = np.array([-0.02, -0.01, -0.0, 0.0, 0.01, 0.02], dtype=np.float32)
    return np.random.default_rng(5).choice(choices, (ROWS, COLUMNS))


def uneven() -> NDArray[np.float32]:
    """Runs of 16 whose magnitudes differ by powers of ten: scales that vanish beside others."""
    rng = np.random.default_rng(3)
    magnitudes = 10 ** rng.uniform(-12, 1, (ROWS, COLUMNS // 16, 1))
    values = rng.standard_normal((ROWS, COLUMNS // 16, 16)) * magnitudes
    return values.reshape(ROWS, COLUMNS).astype(np.float32)


SAMPLES = {name: weights(name, ROWS, COLUMNS) for name in WEIGHTS} | {
    "zero sub-blocks of 32": with_gaps(32),
    "zero sub-blocks of 16": with_gaps(16),
    "zero groups of 8": with_gaps(8),
    "few values": few_values(),
    "uneven": uneven(),
}


def assert_same_bytes(
    type_name: str,
    values: NDArray[np.float32],
    per_column: NDArray[np.float32] | None = None,
    about: str = "",
) -> None:
    np.testing.assert_array_equal(
        blocks.encode(type_name, values, per_column),
        libggml.quantize(type_name, values, per_column),
        err_msg=about,
    )


@pytest.mark.parametrize("type_name", PLAIN)
def test_bytes_are_those_of_libggml(type_name: str) -> None:
    for sample, values in SAMPLES.items():
        assert_same_bytes(type_name, values, about=sample)


@pytest.mark.parametrize("kind", IMPORTANCE)
@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_with_importance_are_those_of_libggml(type_name: str, kind: str) -> None:
    for sample, values in SAMPLES.items():
        assert_same_bytes(type_name, values, importance(kind, COLUMNS), sample)


@pytest.mark.parametrize("type_name", TYPES)
def test_any_number_of_super_blocks(type_name: str) -> None:
    for count in (1, 16, 17):
        for rows, columns in ((count, 256), (1, 256 * count)):
            assert_same_bytes(
                type_name, weights("heavy tails", rows, columns), importance("uniform", columns)
            )


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_changes_the_bytes(type_name: str) -> None:
    values = SAMPLES["gaussian"]
    first, second = (
        blocks.encode(type_name, values, importance(kind, COLUMNS))
        for kind in ("uniform", "heavy tails")
    )
    assert (first != second).any()


@pytest.mark.parametrize("type_name", TYPES)
def test_slabs_of_rows_may_run_in_parallel(type_name: str) -> None:
    values, per_column = weights("heavy tails", 32, COLUMNS), importance("uniform", COLUMNS)
    with ThreadPoolExecutor(2) as pool:
        slabs = pool.map(
            lambda slab: blocks.encode(type_name, slab, per_column), np.split(values, 8)
        )
        encoded = np.concatenate(list(slabs))
    np.testing.assert_array_equal(encoded, libggml.quantize(type_name, values, per_column))


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_that_overflows_is_refused(type_name: str) -> None:
    """Where C stops the process."""
    with pytest.raises(InvalidInput, match="importance"):
        blocks.encode(type_name, np.full((1, 256), 1e4, np.float32), np.full(256, 3e38, np.float32))


@pytest.mark.parametrize(
    ("codebook", "distances"),
    [("iq1", 3), ("iq2_xxs", 2), ("iq2_xs", 2), ("iq2_s", 1), ("iq3_xxs", 2), ("iq3_s", 3)],
)
def test_neighbours_are_the_nearest_points_in_order(codebook: str, distances: int) -> None:
    bits, levels = (3, 8) if codebook.startswith("iq3") else (2, 3)
    shifts = np.arange(0, 12 if bits == 3 else 16, bits)
    grid, lists = codes(codebook), neighbours(codebook)
    points = grid[:, None].astype(int) >> shifts & ((1 << bits) - 1)
    rng = np.random.default_rng(2)
    for corner in rng.integers(0, levels, (60, len(shifts))):
        squares = ((points - corner) ** 2).sum(axis=1)
        limit = np.unique(squares)[distances - 1]
        expected = [grid[i] for i in np.lexsort((squares,)) if squares[i] <= limit]
        first, count = divmod(int(lists.runs[(corner << shifts).sum()]), 32)
        if squares.min() == 0:
            assert (first, count) == (0, 0)
        else:
            run = lists.codes[first : first + count].T.reshape(-1)
            assert run[: len(expected)].tolist() == expected
            assert set(run[len(expected) :]) <= {expected[-1]}
