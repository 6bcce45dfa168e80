"""The K-quant encoders write the bytes of llama.cpp's own libggml."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.formats.gguf.block_samples import IMPORTANCE, WEIGHTS, importance, weights
from tests.oracles import libggml
from zenconvert.ggml import blocks

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
# 21 super-blocks, so one full tile and a part of one, with three to a row.
ROWS, COLUMNS = 7, 768


def uneven_sub_blocks(low: float, high: float) -> NDArray[np.float32]:
    """Runs of 16 whose magnitudes differ by powers of ten, as in a row with outlier channels."""
    random = np.random.default_rng(3)
    magnitudes = 10 ** random.uniform(low, high, (ROWS, COLUMNS // 16, 1))
    values = random.standard_normal((ROWS, COLUMNS // 16, 16)) * magnitudes
    return values.reshape(ROWS, COLUMNS).astype(np.float32)


def one_sided_sub_blocks() -> NDArray[np.float32]:
    """Runs of 32 far from zero, alternating in sign: minima of both kinds in one super-block."""
    random = np.random.default_rng(4)
    signs = np.repeat(random.choice([-1.0, 1.0], (ROWS, COLUMNS // 32)), 32, axis=1)
    return (signs * (1 + np.abs(random.standard_normal(signs.shape)) * 0.3)).astype(np.float32)


SAMPLES = {name: weights(name, ROWS, COLUMNS) for name in WEIGHTS} | {
    # scales that vanish beside the largest: the codes of the search stay
    "uneven": uneven_sub_blocks(-3, 0),
    "uneven to the limits": uneven_sub_blocks(-44, 2),
    "one-sided": one_sided_sub_blocks(),
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


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_are_those_of_libggml(type_name: str, sample: str) -> None:
    assert_same_bytes(type_name, SAMPLES[sample])


@pytest.mark.parametrize("kind", IMPORTANCE)
@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_with_importance_are_those_of_libggml(type_name: str, kind: str) -> None:
    for sample, values in SAMPLES.items():
        assert_same_bytes(type_name, values, importance(kind, COLUMNS), sample)


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_changes_the_bytes(type_name: str) -> None:
    values = SAMPLES["gaussian"]
    weighted = blocks.encode(type_name, values, importance("heavy tails", COLUMNS))
    assert (blocks.encode(type_name, values) != weighted).any()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("type_name", TYPES)
def test_any_number_of_super_blocks(type_name: str, count: int) -> None:
    for rows, columns in ((count, 256), (1, 256 * count)):
        values = weights("gaussian", rows, columns)
        assert_same_bytes(type_name, values)
        assert_same_bytes(type_name, values, importance("uniform", columns))


@pytest.mark.parametrize("type_name", TYPES)
def test_slabs_of_rows_may_run_in_parallel(type_name: str) -> None:
    values, per_column = weights("heavy tails", 64, COLUMNS), importance("uniform", COLUMNS)
    with ThreadPoolExecutor(4) as pool:
        slabs = list(
            pool.map(lambda slab: blocks.encode(type_name, slab, per_column), np.split(values, 16))
        )
    np.testing.assert_array_equal(
        np.concatenate(slabs), libggml.quantize(type_name, values, per_column)
    )
