"""Every encoding keeps to what all of them keep to, and one that is only read is one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.encodings import COLUMNS, ROWS, EncodingTests, normal, on_torch
from zenconvert.base.arrays import Array, cast, reinterpreted
from zenconvert.ggml.blocks import can_decode
from zenconvert.ggml.encoding import Blocks
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.encoding import F16, F32, Dense, Encoding, Grouped
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.scaled import Scaled, ScaledRows


class TestDense(EncodingTests):
    encodings: ClassVar[list[Encoding]] = [
        Dense(name) for name in ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2")
    ]

    def rows(self, encoding: Encoding) -> Any:
        assert isinstance(encoding, Dense)
        return normal().astype(encoding.numpy)


class TestBlocks(EncodingTests):
    encodings: ClassVar[list[Encoding]] = [
        Blocks(name, BY_NAME[name].block_size, BY_NAME[name].type_size)
        for name, kind in BY_NAME.items()
        if can_decode(name) and not kind.is_plain
    ]

    def rows(self, encoding: Encoding) -> Any:
        assert isinstance(encoding, Blocks)
        if not encoding.can_be_written:
            return np.zeros((ROWS, encoding.row_bytes(COLUMNS)), np.uint8)
        return encoding.encode(normal(), np.ones(COLUMNS, np.float32))

    def test_a_device_decodes_any_bytes_the_same(self) -> None:
        for encoding in self.encodings:
            size = (4 * ROWS, encoding.row_bytes(COLUMNS))
            rows = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
            expected = encoding.decode(rows, COLUMNS)
            found = encoding.decode(on_torch(rows), COLUMNS).numpy()
            same = found.view(np.uint32) == expected.view(np.uint32)
            assert (same | np.isnan(expected) & np.isnan(found)).all(), encoding


class TestGrouped(EncodingTests):
    encodings: ClassVar[list[Encoding]] = [
        Grouped(4, 128, symmetric=True),
        Grouped(4, 32, symmetric=False),
        Grouped(8, None, symmetric=True),
        Grouped(3, 64, symmetric=False, scale=F32),
        Grouped(4, 32, symmetric=False, offset=F16),
        Grouped(2, 16, symmetric=True, ordered=True),
    ]

    def rows(self, encoding: Encoding) -> Any:
        assert isinstance(encoding, Grouped)
        random = np.random.default_rng(encoding.bits)
        groups, shape = encoding.groups(COLUMNS), (ROWS, encoding.groups(COLUMNS))
        index = random.permutation(COLUMNS) // (COLUMNS // groups) if encoding.ordered else None
        own = not encoding.symmetric and encoding.offset is None
        return GroupedRows(
            encoding.bits,
            random.integers(0, 1 << encoding.bits, (ROWS, COLUMNS)).astype(np.uint8),
            random.normal(size=shape).astype(encoding.scale.numpy),
            random.integers(0, 1 << encoding.bits, shape).astype(np.uint8) if own else None,
            encoding.group,
            None if index is None else index.astype(np.int32),
            offsets=random.normal(size=shape).astype(np.float16) if encoding.offset else None,
        )


class TestScaled(EncodingTests):
    encodings: ClassVar[list[Encoding]] = [
        Scaled(Dense("f8_e4m3"), F32, (128, 128)),
        Scaled(Dense("f8_e4m3"), F32, (4, 96), (-3, 2)),
        Scaled(Dense("f8_e4m3"), F32, (1, None)),
        Scaled(Dense("f8_e5m2"), F32, (None, None)),
    ]

    def rows(self, encoding: Encoding) -> Any:
        assert isinstance(encoding, Scaled)
        random = np.random.default_rng(0)
        shape = (ROWS, encoding.groups(COLUMNS))
        scales = random.uniform(0.1, 2, shape).astype(np.float32)
        if encoding.exponents is not None:
            scales = np.exp2(random.integers(-3, 3, shape)).astype(np.float32)
        codes = normal().astype(encoding.codes.numpy)
        return ScaledRows(codes, scales, encoding.tile[1] or COLUMNS)


@dataclass(frozen=True, slots=True)
class ByRow(Encoding):
    """8-bit floats with a float32 scale before every row: read, and written by nobody here."""

    def __str__(self) -> str:
        return "fp8-by-row"

    def row_bytes(self, columns: int) -> int:
        return 4 + columns

    def decode(self, rows: Array, columns: int) -> Array:
        codes = reinterpreted(rows[:, 4:], Dense("f8_e4m3").numpy)
        return cast(codes, np.float32) * reinterpreted(rows[:, :4], np.float32)


class TestAnEncodingThatIsOnlyRead(EncodingTests):
    """What CONTRIBUTING.md says an encoding needs is enough."""

    encodings: ClassVar[list[Encoding]] = [ByRow()]

    def rows(self, encoding: Encoding) -> Any:
        scales = np.linspace(0.5, 2, ROWS, dtype="<f4")[:, None]
        codes = normal().astype(Dense("f8_e4m3").numpy)
        return np.hstack([scales.view(np.uint8), codes.view(np.uint8)])

    def test_nobody_writes_it(self) -> None:
        assert not ByRow().can_be_written
        assert ByRow().grid() is None


@pytest.mark.parametrize("name", ["q8_1", "q8_k"])
def test_blocks_that_are_only_read_say_so(name: str) -> None:
    ggml = BY_NAME[name]
    assert not Blocks(name, ggml.block_size, ggml.type_size).can_be_written
