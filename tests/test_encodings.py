"""Every encoding keeps to what all of them keep to, and one that is only read is one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encodings import COLUMNS, ROWS, EncodingTests, normal
from zenconvert.ggml.encoding import Blocks
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.encoding import F16, F32, Dense, Encoding, Grouped
from zenconvert.model.grouped import GroupedRows


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
        for name in ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "iq4_nl", "mxfp4", "q5_0")
    ]

    def rows(self, encoding: Encoding) -> Any:
        assert isinstance(encoding, Blocks)
        return encoding.encode(normal(), None)


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


@dataclass(frozen=True, slots=True)
class ByRow(Encoding):
    """8-bit floats with a float32 scale before every row: read, and written by nobody here."""

    def __str__(self) -> str:
        return "fp8-by-row"

    def row_bytes(self, columns: int) -> int:
        return 4 + columns

    def decode(self, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        scales = np.ascontiguousarray(rows[:, :4]).view("<f4")
        codes = np.ascontiguousarray(rows[:, 4:]).view(Dense("f8_e4m3").numpy)
        numbers: NDArray[np.float32] = codes.astype(np.float32) * scales
        return numbers


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
