"""Grouped rows: the numbers that they are, and other grids on which the same numbers lie."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenconvert.errors import InvalidInput
from zenconvert.ggml import integer_grids
from zenconvert.model.encoding import F16, F32, Dense, Grouped
from zenconvert.model.grouped import GroupedRows, regroup
from zenconvert.model.pieces import Piece


def some_rows(
    bits: int = 4,
    group: int | None = 32,
    *,
    rows: int = 5,
    columns: int = 128,
    zeros: bool = True,
    ordered: bool = False,
    seed: int = 0,
) -> GroupedRows:
    """Rows of random codes, scales (of both signs) and zeros."""
    random = np.random.default_rng(seed)
    groups = columns // (group or columns)
    index = random.permutation(columns) // (group or columns) if ordered else None
    return GroupedRows(
        bits,
        random.integers(0, 1 << bits, (rows, columns)).astype(np.uint8),
        (random.standard_normal((rows, groups)) * 0.01).astype(np.float16),
        random.integers(0, 1 << bits, (rows, groups)).astype(np.uint8) if zeros else None,
        group,
        None if index is None else index.astype(np.int32),
    )


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_weight_is_code_minus_zero_times_scale(zeros: bool, ordered: bool) -> None:
    rows = some_rows(zeros=zeros, ordered=ordered)
    values = rows.dequantize()
    for column in range(128):
        group = column // 32 if rows.group_index is None else int(rows.group_index[column])
        zero = 8 if rows.zeros is None else rows.zeros[:, group].astype(float)
        expected = (rows.codes[:, column].astype(float) - zero) * rows.scales[:, group]
        np.testing.assert_array_equal(values[:, column], expected.astype(np.float32))


@given(
    bits=st.sampled_from([2, 3, 4]),
    wider=st.sampled_from([4, 8]),
    group=st.sampled_from([None, 128, 64, 32]),
    finer=st.sampled_from([64, 32, 16]),
    zeros=st.booleans(),
    seed=st.integers(0, 20),
)
def test_regrouping_keeps_every_number(
    bits: int, wider: int, group: int | None, finer: int, zeros: bool, seed: int
) -> None:
    rows = some_rows(bits, group, zeros=zeros, seed=seed)
    smaller = min(finer, group or 128)
    target = Grouped(wider, smaller, symmetric=not zeros, scale=F32)
    found = regroup(rows, target)
    assert found.encoding == target
    np.testing.assert_array_equal(found.dequantize(), rows.dequantize())


@pytest.mark.parametrize(
    ("rows", "target", "reason"),
    [
        (some_rows(), Grouped(4, 32, symmetric=True), "zeros are not all 8"),
        (some_rows(), Grouped(3, 32, symmetric=False), "do not fit into 3"),
        (some_rows(), Grouped(4, 64, symmetric=False), "cannot be split"),
        (some_rows(), Grouped(4, None, symmetric=False), "cannot be split"),
        (some_rows(ordered=True), Grouped(4, 32, symmetric=False), "order of their own"),
        (some_rows(ordered=True), Grouped(4, 16, symmetric=False, ordered=True), "split"),
        (some_rows(), Grouped(4, 32, symmetric=False, scale=Dense("bf16")), "values of bf16"),
    ],
)
def test_what_does_not_fit_is_refused(rows: GroupedRows, target: Grouped, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        regroup(rows, target)


def test_zeros_at_the_midpoint_and_plain_orders_are_nothing() -> None:
    rows = some_rows(zeros=False)
    zeros = np.full(rows.scales.shape, 8, dtype=np.uint8)
    plain = replace(rows, zeros=zeros, group_index=rows.column_groups())
    assert plain.canonical().encoding == rows.encoding == Grouped(4, 32, symmetric=True)
    assert regroup(plain, rows.encoding).zeros is None
    explicit = regroup(rows, Grouped(4, 32, symmetric=False))
    assert explicit.zeros is not None
    assert set(explicit.zeros.flat) == {8}


def test_an_order_is_added_where_the_target_wants_one() -> None:
    found = regroup(some_rows(), Grouped(4, 32, symmetric=False, ordered=True))
    assert found.group_index is not None
    assert found.group_index.tolist() == [i // 32 for i in range(128)]


def test_bfloat16_scales_become_float16_only_without_loss() -> None:
    rows = some_rows()
    exact = replace(rows, scales=np.full_like(rows.scales, 0.375).astype(ml_dtypes.bfloat16))
    target = Grouped(4, 32, symmetric=False, scale=F16)
    assert regroup(exact, target).scales.dtype == np.float16
    tiny = replace(exact, scales=exact.scales * ml_dtypes.bfloat16(1e-30))
    with pytest.raises(InvalidInput, match="values of f16"):
        regroup(tiny, target)


def test_taking_rows_takes_scales_and_zeros_along() -> None:
    rows = some_rows()
    found = rows.take(np.array([3, 0]))
    np.testing.assert_array_equal(found.dequantize(), rows.dequantize()[[3, 0]])


def test_rows_lie_in_pieces_as_the_pieces_say() -> None:
    whole_words = Piece("qzeros", "i32", (2, 12), axis=1, items=3)
    assert [whole_words.span(b, b + 32) for b in (0, 32, 96)] == [(0, 3), (3, 6), (9, 12)]
    last = Piece("qzeros", "i32", (2, 5), axis=1, items=4)  # 40 codes of 4 bits
    assert last.span(32, 40) == (4, 5)
    assert Piece("g_idx", "i32", (64,), axis=None).span(32, 64) == (0, 64)
    assert Piece("scales", "f16", (40, 3)).span(32, 40) == (32, 40)


def test_a_minimum_beyond_half_precision_is_refused() -> None:
    rows = replace(some_rows(zeros=False), scales=np.full((5, 4), 9000, dtype=np.float16))
    with pytest.raises(InvalidInput, match="minimum -72000 is beyond the range of f16"):
        integer_grids.from_grouped("q4_1", rows)
