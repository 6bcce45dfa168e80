"""The door of the block codecs: what it refuses, what it loads, how it may be called."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.formats.gguf.block_samples import importance, weights
from tests.oracles import libggml
from zenconvert.errors import InvalidInput, UnsupportedEncoding
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME

ENCODED = [name for name in BY_NAME if blocks.can_encode(name)]


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, zenconvert.ggml.blocks; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_encoded_is_decoded() -> None:
    assert all(blocks.can_decode(name) for name in ENCODED)


def test_unknown_and_undecodable_types_are_refused() -> None:
    values = np.zeros((1, 256), dtype=np.float32)
    for name in ("q9_9", "q8_1"):
        assert not blocks.can_encode(name)
        with pytest.raises(UnsupportedEncoding, match=name):
            blocks.encode(name, values)
    with pytest.raises(UnsupportedEncoding, match="q9_9"):
        blocks.decode("q9_9", np.zeros((1, 36), dtype=np.uint8), 32)
    with pytest.raises(UnsupportedEncoding, match="q9_9"):
        blocks.warm_up(["q9_9"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    values = weights("gaussian", 70, 4096)
    values[61, 33] = value
    with pytest.raises(InvalidInput, match=r"\[61, 33\]"):
        blocks.encode("q8_0", values)


def test_rows_of_part_of_a_block_are_refused() -> None:
    with pytest.raises(InvalidInput, match="100 columns"):
        blocks.encode("q4_0", np.zeros((2, 100), dtype=np.float32))
    with pytest.raises(InvalidInput, match="100 columns"):
        blocks.decode("q4_0", np.zeros((2, 54), dtype=np.uint8), 100)


def test_rows_with_other_bytes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="18 bytes; found 19"):
        blocks.decode("q4_0", np.zeros((2, 19), dtype=np.uint8), 32)


def test_scales_beyond_float16_are_refused() -> None:
    values = np.full((3, 32), 1e5, dtype=np.float32)
    values[2] = 1e7
    assert np.isfinite(blocks.decode("q8_0", blocks.encode("q8_0", values[:2]), 32)).all()
    with pytest.raises(InvalidInput, match="q8_0"):
        blocks.encode("q8_0", values)


@pytest.mark.parametrize(
    "bad", [np.ones(64), np.ones((1, 32)), np.full(32, -1.0), np.full(32, np.nan)]
)
def test_importance_that_does_not_fit_is_refused(bad: np.ndarray) -> None:
    values = weights("gaussian", 1, 32)
    with pytest.raises(InvalidInput, match="importance"):
        blocks.encode("q4_0", values, bad.astype(np.float32))


def test_types_that_require_importance_are_refused_without() -> None:
    values = weights("gaussian", 1, 256)
    for name in ("iq1_s", "iq2_xxs", "iq2_xs"):
        assert blocks.requires_importance(name)
        with pytest.raises(InvalidInput, match=f"{name}.*importance"):
            blocks.encode(name, values)
    assert not blocks.requires_importance("iq2_s")


def test_no_rows() -> None:
    assert blocks.encode("q4_0", np.zeros((0, 64), dtype=np.float32)).shape == (0, 36)
    assert blocks.decode("q4_0", np.zeros((0, 36), dtype=np.uint8), 64).shape == (0, 64)


def test_mapped_read_only_and_strided_weights(tmp_path: Path) -> None:
    values = weights("gaussian", 8, 128)
    expected = libggml.quantize("q4_0", values)
    values.tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r", shape=(8, 128))
    np.testing.assert_array_equal(blocks.encode("q4_0", mapped), expected)
    np.testing.assert_array_equal(blocks.encode("q4_0", values[::2]), expected[::2])
    np.testing.assert_array_equal(blocks.encode("q4_0", np.asfortranarray(values)), expected)


@pytest.mark.parametrize("type_name", ["q4_0", "q4_1", "iq4_xs", "q8_0"])
def test_slabs_in_threads_give_the_bytes_of_the_whole(type_name: str) -> None:
    values, per_column = weights("gaussian", 64, 1024), importance("uniform", 1024)
    slabs = [values[start : start + 3] for start in range(0, 64, 3)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda slab: blocks.encode(type_name, slab, per_column), slabs))
    np.testing.assert_array_equal(
        np.concatenate(parts), libggml.quantize(type_name, values, per_column)
    )


def test_warm_up_leaves_nothing_to_compile() -> None:
    code = """
import sys
import numpy as np
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME

def specialisations():
    modules = [m for name, m in sys.modules.items() if name.startswith(blocks.__name__)]
    kernels = [k for m in modules for k in vars(m).values() if hasattr(k, "signatures")]
    return sum(len(k.signatures) for k in kernels)

names = [name for name in BY_NAME if blocks.can_encode(name)]
blocks.warm_up(names)
loaded = specialisations()
assert loaded > len(names), loaded
for name in names:
    for rows, columns in ((1, 512), (3, 256)):
        weights = np.ones((rows, columns), np.float32)
        encoded = blocks.encode(name, weights[:, ::-1], np.ones(columns, np.float32))
        if not blocks.requires_importance(name):
            encoded = blocks.encode(name, weights)
        blocks.decode(name, encoded, columns)
assert specialisations() == loaded, (specialisations(), loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
