"""Packed integers against bytes written by hand and against one long integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zenconvert.errors import InvalidInput
from zenconvert.formats.int_packing import pack, pack_planar, unpack, unpack_planar, words

UNIT = 32


def codes_of(*values: int) -> NDArray[np.uint8]:
    """One column of codes, filled up with zeros to whole units."""
    count = -(-len(values) // UNIT) * UNIT
    return np.array([*values, *[0] * (count - len(values))], dtype=np.uint8)[:, None]


def hexes(packed: NDArray[np.int32]) -> list[str]:
    """Words of the first column."""
    return [f"{int(word) & 0xFFFFFFFF:08x}" for word in packed[:, 0]]


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (2, (0, 1, 2, 3) * 8, ["e4e4e4e4", "e4e4e4e4"]),
        (4, (1, 2, 3, 4, 5, 6, 7, 8), ["87654321", *["00000000"] * 3]),
        (4, (0,) * 7 + (15,), ["f0000000", *["00000000"] * 3]),
        (8, (1, 2, 3, 254), ["fe030201", *["00000000"] * 7]),
        # code 10 lies across words 0 and 1 (2 + 1 bits), code 21 across 1 and 2 (1 + 2 bits)
        (3, (0,) * 10 + (0b101,), ["40000000", "00000001", "00000000"]),
        (3, (0,) * 21 + (0b111,), ["00000000", "80000000", "00000003"]),
        (3, (1, 2, 3, 4, 5, 6, 7, 1, 2, 3), ["1a3f58d1", "00000000", "00000000"]),
        (3, (0,) * 31 + (7,), ["00000000", "00000000", "e0000000"]),
    ],
)
def test_words_are_those_of_the_layout(
    bits: int, values: tuple[int, ...], expected: list[str]
) -> None:
    packed = pack(codes_of(*values), bits)
    assert packed.dtype == np.int32
    assert hexes(packed) == expected
    assert unpack(packed, bits, UNIT)[:, 0].tolist() == codes_of(*values)[:, 0].tolist()


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        # two words of low pairs, then one of high bits
        (3, (0b101, 0b010), ["00000009", "00000000", "00000001"]),
        (3, (0,) * 16 + (0b111,), ["00000000", "00000003", "00010000"]),
        # four words of low nibbles, then planes of one or two bits
        (5, (0b11111,), ["0000000f", *["00000000"] * 3, "00000001"]),
        (6, (0, 0b110001), ["00000010", *["00000000"] * 3, "0000000c", "00000000"]),
        (7, (0b1000000,), [*["00000000"] * 6, "00000001"]),
        (7, (0b0110000,), [*["00000000"] * 4, "00000003", *["00000000"] * 2]),
    ],
)
def test_planar_words_are_those_of_the_layout(
    bits: int, values: tuple[int, ...], expected: list[str]
) -> None:
    assert hexes(pack_planar(codes_of(*values), bits)) == expected


def some_codes(bits: int, shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)


@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 100),
    columns=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_packed_codes_are_one_long_integer(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = some_codes(bits, (rows, columns), seed)
    packed = pack(codes, bits)
    assert packed.shape == (words(rows, bits), columns)
    for column in range(columns):
        stream = int.from_bytes(packed[:, column].astype("<i4").tobytes(), "little")
        assert stream == sum(int(c) << bits * i for i, c in enumerate(codes[:, column]))
    np.testing.assert_array_equal(unpack(packed, bits, rows), codes)


@given(bits=st.integers(2, 8), units=st.integers(1, 3), seed=st.integers(0, 99))
def test_planes_hold_the_same_codes_in_as_many_words(bits: int, units: int, seed: int) -> None:
    codes = some_codes(bits, (units * UNIT, 3), seed)
    packed = pack_planar(codes, bits)
    assert packed.shape == (units * bits, 3)
    np.testing.assert_array_equal(unpack_planar(packed, bits), codes)
    assert np.array_equal(packed, pack(codes, bits)) == (bits in {2, 4, 8})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [32, 96, 100])
def test_how_codes_lie_in_memory_does_not_matter(bits: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (count, 7)).astype(np.uint8)
    rows = pack(np.ascontiguousarray(codes), bits)
    columns = pack(np.asfortranarray(codes), bits)
    np.testing.assert_array_equal(rows, columns)
    np.testing.assert_array_equal(unpack(np.asfortranarray(rows), bits, count), codes)


def test_words_that_are_no_whole_planes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="2 words are no whole planes of 4 bits"):
        unpack_planar(np.zeros((2, 1), dtype=np.int32), 4)
