"""Block encoders write the bytes of llama.cpp's own libggml."""

from __future__ import annotations

import numpy as np
import pytest

from tests.formats.gguf.block_samples import IMPORTANCE, WEIGHTS, importance, weights
from tests.oracles import libggml
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME

TYPES = (
    *("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "iq4_xs"),
    *("tq1_0", "tq2_0", "q1_0", "q2_0", "mxfp4", "nvfp4"),
)
WEIGHTED = tuple(name for name in TYPES if blocks.uses_importance(name))
# 7 rows of 24 blocks of 32: more than two tiles, the last one not full.
ROWS, COLUMNS = 7, 768


@pytest.mark.parametrize("sample", WEIGHTS)
@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_are_those_of_libggml(type_name: str, sample: str) -> None:
    values = weights(sample, ROWS, COLUMNS)
    np.testing.assert_array_equal(
        blocks.encode(type_name, values), libggml.quantize(type_name, values)
    )


@pytest.mark.parametrize("kind", IMPORTANCE)
@pytest.mark.parametrize("type_name", WEIGHTED)
def test_bytes_with_importance_are_those_of_libggml(type_name: str, kind: str) -> None:
    per_column = importance(kind, COLUMNS)
    for sample in WEIGHTS:
        values = weights(sample, ROWS, COLUMNS)
        np.testing.assert_array_equal(
            blocks.encode(type_name, values, per_column),
            libggml.quantize(type_name, values, per_column),
            err_msg=sample,
        )


@pytest.mark.parametrize("type_name", WEIGHTED)
def test_importance_changes_the_bytes(type_name: str) -> None:
    values, per_column = weights("gaussian", ROWS, COLUMNS), importance("heavy tails", COLUMNS)
    assert (blocks.encode(type_name, values) != blocks.encode(type_name, values, per_column)).any()


@pytest.mark.parametrize("type_name", sorted(set(TYPES) - set(WEIGHTED)))
def test_types_without_importance_ignore_it(type_name: str) -> None:
    values, per_column = weights("gaussian", ROWS, COLUMNS), importance("heavy tails", COLUMNS)
    np.testing.assert_array_equal(
        blocks.encode(type_name, values, per_column),
        libggml.quantize(type_name, values, per_column),
    )


@pytest.mark.parametrize("columns", [32, 96, 4096])
@pytest.mark.parametrize("type_name", [t for t in TYPES if t.endswith(("_0", "_1", "_nl"))])
def test_any_row_length(type_name: str, columns: int) -> None:
    if columns % BY_NAME[type_name].block_size:
        columns = 256
    values, per_column = weights("gaussian", 67, columns), importance("uniform", columns)
    for given in (None, per_column):
        np.testing.assert_array_equal(
            blocks.encode(type_name, values, given), libggml.quantize(type_name, values, given)
        )


def test_bf16_keeps_nan_quiet_and_infinity() -> None:
    bits = np.array([[0x7F800001, 0xFF812345, 0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF]])
    values = bits.astype(np.uint32).view(np.float32)
    encoded = blocks.encode("bf16", values)
    np.testing.assert_array_equal(encoded, libggml.quantize("bf16", values))
    assert np.isnan(blocks.decode("bf16", encoded, 6)[0, :3]).all()


def test_every_float16_comes_back() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[None]
    numbers = halves[:, np.isfinite(halves[0])].astype(np.float32)
    encoded = blocks.encode("f16", numbers)
    np.testing.assert_array_equal(encoded.view(np.float16), numbers.astype(np.float16))
    np.testing.assert_array_equal(blocks.decode("f16", encoded, numbers.shape[1]), numbers)
