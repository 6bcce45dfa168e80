"""Sources that cannot be read any more when the plan is carried out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.safety.outputs import after, fail, names
from zenconvert import plan
from zenconvert.conversion import run
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, ZenError
from zenconvert.planning.plan import Plan
from zenconvert.write import output

targets = pytest.mark.parametrize("target", ["gguf:f16", "gguf:q8_0", "hf:f16"])


def refused(planned: Plan, out: Path) -> ZenError:
    """Run a plan that cannot be carried out; nothing may be left of it."""
    before = names(out.parent)
    with pytest.raises(ZenError) as caught:
        run(planned, out)
    assert names(out.parent) == before
    return caught.value


@targets
def test_weights_that_shrink_or_vanish(target: str, source: Path, tmp_path: Path) -> None:
    planned, out = plan(source, target, out="out"), tmp_path / "out"
    weights = source / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    error = refused(planned, out)
    assert isinstance(error, CorruptFile)
    assert str(weights) in str(error)
    weights.unlink()
    error = refused(planned, out)
    assert isinstance(error, SourceNotFound)
    assert str(weights) in str(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@targets
def test_weights_that_cannot_be_read(
    target: str, number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(source, target, out="out")
    after(monkeypatch, "preadv", 5, fail(number))
    error = refused(planned, tmp_path / "out")
    assert isinstance(error, InvalidInput)
    assert "model.safetensors" in str(error)
    assert os.strerror(number) in str(error)


def test_side_files_that_change_or_vanish(source: Path, tmp_path: Path) -> None:
    planned, out = plan(source, "hf:f16", out="out"), tmp_path / "out"
    side = source / "tokenizer_config.json"
    whole = side.read_bytes()
    for damaged in (whole[:-10], whole + b" "):
        side.write_bytes(damaged)
        error = refused(planned, out)
        assert isinstance(error, CorruptFile)
        assert str(side) in str(error)
    side.unlink()
    error = refused(planned, out)
    assert isinstance(error, SourceNotFound)
    assert str(side) in str(error)
    side.write_bytes(whole)
    run(plan(source, "hf:f16", out="out"), out)
    assert (out / side.name).read_bytes() == whole


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2500])
def test_side_files_are_copied_in_slabs(
    size: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_CHUNK", 1000)
    side = source / "LICENSE"
    side.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    run(plan(source, "hf:f16", out="out"), tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_bytes() == side.read_bytes()
