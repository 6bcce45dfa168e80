"""Operations of the tables: each is undone by its inverse, on data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.families import FAMILIES
from tests.tiny import CONFIGS
from zenconvert.model import architecture as arch
from zenconvert.model.encoding import BF16, F16, F32, Dense
from zenconvert.model.operations import CHANGES, ROWS, changed, comes_back, left_over
from zenconvert.model.rows import Rows


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("family", [*CONFIGS, "qwen3_next"])
def test_rows_are_where_they_were_after_the_inverse(name: str, family: str) -> None:
    config = FAMILIES[family].config
    hp = arch.for_model_type(config["model_type"]).sizes(config, where="test")
    if name.startswith("tile") and not hp.linear_layers:
        return
    order = ROWS[name](hp)
    count = hp.linear_channels if name == "tile_channels" else hp.q_width
    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    moved: Rows = order.apply(rows)
    assert isinstance(moved, np.ndarray)
    assert not np.array_equal(moved, rows)
    back = order.inverse().apply(moved)
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, rows)


def test_changes_undo_each_other_by_name() -> None:
    for name, change in CHANGES.items():
        assert CHANGES[change.undone_by].undone_by == name
        assert left_over(name, change.undone_by) == ()
    assert left_over("take_one", None) == ("take_one",)
    assert left_over(None, None) == ()


def _every(dtype: Dense, low: float, high: float) -> np.ndarray:
    """All numbers of a 16-bit type whose size is in a range."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
    size = np.abs(codes.astype(np.float32))
    return codes[(size >= low) & (size <= high)]


@pytest.mark.parametrize(("dtype", "least"), [(BF16, 2.0**-16), (F16, 2.0**-13)])
def test_one_plus_w_keeps_16_bit_numbers_that_are_not_tiny(dtype: Dense, least: float) -> None:
    values = _every(dtype, least, 64)
    assert comes_back(values, ("add_one",), F32) == 0
    assert comes_back(_every(dtype, 2.0**-40, 2.0**-24), ("add_one",), F32) > 0


def test_one_plus_w_rounds_float32_and_says_how_often() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    stored = changed(values, ("add_one",))
    np.testing.assert_array_equal(stored, np.float32(1) + values)
    lost = int(np.count_nonzero(stored - np.float32(1) != values))
    assert 0 < lost == comes_back(values, ("add_one",), F32)


@pytest.mark.parametrize(("dtype", "least"), [(BF16, 2.0**-14), (F16, 2.0**-10)])
def test_decay_is_as_torch_has_it_and_16_bit_logarithms_come_back(
    dtype: Dense, least: float
) -> None:
    """The last bit of torch's exponential of float32 differs from processor to processor."""
    values = _every(dtype, least, 20)
    assert comes_back(values, ("minus_exp",), F32) == 0
    stored = changed(values, ("minus_exp",))
    theirs = -torch.exp(torch.from_numpy(values.astype(np.float32))).numpy()
    assert np.abs(stored.view(np.int32) - theirs.view(np.int32)).max() <= 1
