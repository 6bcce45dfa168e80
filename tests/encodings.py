"""What every encoding keeps to. Each kind has a class in ``test_encodings`` that inherits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from zenconvert.base.arrays import on_device
from zenconvert.ggml.encoding import Blocks
from zenconvert.model.checkpoint import StoredTensor, Tensor
from zenconvert.model.encoding import BF16, F32, Encoding, Grouped
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.layout import Choice
from zenconvert.model.target import Scheme
from zenconvert.planning.judging import recoding
from zenconvert.planning.recoding import recode, round_to_nearest

ROWS, COLUMNS = 6, 512


def tensor_of(encoding: Encoding) -> Tensor:
    """A tensor whose data nobody reads."""
    return Tensor("x.weight", (ROWS, COLUMNS), encoding, StoredTensor(Path("x"), 0, "x"))


def on_torch(rows: Any) -> Any:
    """Rows as they travel on a device."""
    return on_device(rows, "cpu") if isinstance(rows, np.ndarray) else rows.on_device("cpu")


class EncodingTests:
    """An encoding and rows of it."""

    encodings: ClassVar[list[Encoding]]

    def rows(self, encoding: Encoding) -> Any:
        """Stored rows, as they travel."""
        raise NotImplementedError

    def test_encodings_are_values(self) -> None:
        for encoding in self.encodings:
            assert encoding == replace(encoding)  # type: ignore[type-var]
            assert hash(encoding) == hash(replace(encoding))  # type: ignore[type-var]
            assert len({str(e) for e in self.encodings}) == len(self.encodings)

    def test_rows_have_the_bytes_it_says(self) -> None:
        for encoding in self.encodings:
            rows = self.rows(encoding)
            if isinstance(rows, np.ndarray):
                assert rows.nbytes == ROWS * encoding.row_bytes(COLUMNS), encoding

    def test_rows_decode_one_by_one(self) -> None:
        for encoding in self.encodings:
            rows = self.rows(encoding)
            whole = encoding.decode(rows, COLUMNS)
            assert whole.shape == (ROWS, COLUMNS)
            for number in range(ROWS):
                one = slice(number, number + 1)
                taken = rows[one] if isinstance(rows, np.ndarray) else rows.take(one)
                np.testing.assert_array_equal(encoding.decode(taken, COLUMNS), whole[one])

    def test_a_device_decodes_the_same(self) -> None:
        for encoding in self.encodings:
            rows = self.rows(encoding)
            expected = np.asarray(encoding.decode(rows, COLUMNS)).astype(np.float32)
            found = encoding.decode(on_torch(rows), COLUMNS)
            assert isinstance(found, torch.Tensor)
            same = found.float().numpy().view(np.uint32) == expected.view(np.uint32)
            assert (same | np.isnan(expected)).all(), encoding

    def test_its_grid_holds_the_numbers(self) -> None:
        for encoding in self.encodings:
            grid = encoding.grid()
            if grid is None:
                with pytest.raises((NotImplementedError, KeyError)):
                    encoding.on_grid(self.rows(encoding), COLUMNS)
                continue
            rows = self.rows(encoding)
            on_grid = encoding.on_grid(rows, COLUMNS)
            assert on_grid.encoding == grid
            np.testing.assert_array_equal(on_grid.dequantize(), encoding.decode(rows, COLUMNS))

    @pytest.mark.parametrize("target", [F32, BF16, Blocks("q8_0", 32, 34)], ids=str)
    def test_what_the_plan_calls_exact_is(self, target: Encoding) -> None:
        """And a step that it calls lossy is done as well, to rows of the target's bytes."""
        for encoding in self.encodings:
            rows, choice = self.rows(encoding), Choice("x", (), (ROWS, COLUMNS), target)
            found = recoding(tensor_of(encoding), choice)
            result = recode(rows, tensor_of(encoding), choice, found, None, "x", round_to_nearest)
            assert isinstance(result, np.ndarray)
            assert result.nbytes == ROWS * target.row_bytes(COLUMNS)
            if found.exact:
                before, after = encoding.decode(rows, COLUMNS), target.decode(result, COLUMNS)
                np.testing.assert_array_equal(after.astype(np.float64), before.astype(np.float64))

    def test_a_grid_takes_it(self) -> None:
        target = Grouped(8, 32, symmetric=False)
        for encoding in self.encodings:
            choice = replace(
                Choice("x", (), (ROWS, COLUMNS), target), scheme=Scheme(8, 32, symmetric=False)
            )
            found = recoding(tensor_of(encoding), choice)
            rows = self.rows(encoding)
            result = recode(rows, tensor_of(encoding), choice, found, None, "x", round_to_nearest)
            assert isinstance(result, GroupedRows)
            assert result.encoding == target
            if found.exact:
                before = encoding.decode(rows, COLUMNS)
                np.testing.assert_array_equal(result.dequantize(), before)


def normal(seed: int = 0) -> Any:
    """float32[ROWS, COLUMNS]."""
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)
