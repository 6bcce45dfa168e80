"""What every format keeps to. A format's own class in ``test_conformance`` inherits it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.onnx_runs import with_tokenizer
from zenconvert import convert, open_checkpoint, plan
from zenconvert.calib.methods import METHODS
from zenconvert.errors import PlanError, UsageError, ZenError
from zenconvert.formats.registry import FORMATS, Format, detect
from zenconvert.planning.recoding import logical_rows
from zenconvert.verification.engines import ENGINES


class FormatTests:
    """A format: its row, what it writes, and what it makes of files that are not whole."""

    name: ClassVar[str]
    exact: ClassVar[str]
    """A type that holds any bfloat16 number, or that the format's own numbers lie on."""
    again: ClassVar[str | None] = None
    """A type whose artifact ``exact`` starts from; None for the float source."""

    @property
    def form(self) -> Format:
        """The row."""
        return FORMATS[self.name]

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A small bfloat16 model with a tokenizer."""
        return with_tokenizer(tmp_path_factory.mktemp("conformance") / "source", "qwen2")

    @classmethod
    def write(cls, source: Path, folder: Path, kind: str) -> Path:
        """The artifact of a type."""
        out = folder / f"made{FORMATS[cls.name].suffix or ''}"
        convert(source, out, f"{cls.name}:{kind}")
        return out

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An artifact of the default type."""
        return cls.write(source, tmp_path_factory.mktemp("made"), FORMATS[cls.name].types[0])

    def test_its_row_is_whole(self) -> None:
        form = self.form
        assert form.name == self.name
        assert form.engines, "nothing runs it"
        assert set(form.engines) <= set(ENGINES)
        assert form.solver is None or METHODS[form.solver].needs_statistics
        assert form.library
        assert form.types
        assert len(set(form.types)) == len(form.types)
        assert form.near_type is None or form.near_type in form.types

    def test_what_it_writes_is_taken_for_its_own(self, made: Path) -> None:
        assert detect(made).name == self.name
        assert made.is_file() == self.form.is_file

    def test_what_it_writes_is_the_model(self, source: Path, made: Path) -> None:
        before, after = open_checkpoint(source), open_checkpoint(made)
        assert after.format == self.name
        assert after.hyperparameters == before.hyperparameters
        assert {n: t.shape for n, t in after.tensors.items()} == {
            n: t.shape for n, t in before.tensors.items()
        }
        assert after.tokenizer.tokens == before.tokenizer.tokens
        assert after.tokenizer.special == before.tokenizer.special

    def test_the_plan_knows_its_size(self, source: Path, made: Path) -> None:
        planned = plan(source, f"{self.name}:{self.form.types[0]}")
        files = [made] if made.is_file() else [p for p in made.rglob("*") if p.is_file()]
        assert planned.output_bytes == sum(path.stat().st_size for path in files)

    def test_the_same_again_is_the_same_bytes(
        self, source: Path, made: Path, tmp_path: Path
    ) -> None:
        other = self.write(source, tmp_path, self.form.types[0])
        pairs = [(made, other)]
        if made.is_dir():
            names = [p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file()]
            pairs = [(made / name, other / name) for name in names]
        for one, two in pairs:
            assert one.read_bytes() == two.read_bytes(), one.name

    def test_exact_is_exact(self, source: Path, tmp_path: Path) -> None:
        start = source if self.again is None else self.write(source, tmp_path, self.again)
        out = tmp_path / f"exact{self.form.suffix or ''}"
        convert(start, out, f"{self.name}:{self.exact}", exact=True)
        before, after = open_checkpoint(start), open_checkpoint(out)
        for name, tensor in before.tensors.items():
            found = logical_rows(after.tensors[name], 0, tensor.rows)
            np.testing.assert_array_equal(found, logical_rows(tensor, 0, tensor.rows), name)

    def test_an_unknown_type_is_refused_by_name(self, source: Path) -> None:
        with pytest.raises((UsageError, PlanError), match="nonsense"):
            plan(source, f"{self.name}:nonsense")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_files_that_end_too_early_are_our_errors(
        self, made: Path, tmp_path: Path, share: float
    ) -> None:
        out = tmp_path / made.name
        if made.is_dir():
            out.mkdir()
            for path in made.iterdir():
                (out / path.name).write_bytes(path.read_bytes())
            weights = max(out.iterdir(), key=lambda path: path.stat().st_size)
        else:
            out.write_bytes(made.read_bytes())
            weights = out
        data = weights.read_bytes()
        weights.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ZenError):
            convert(out, tmp_path / "again", "hf:f32")
        assert not (tmp_path / "again").exists()
