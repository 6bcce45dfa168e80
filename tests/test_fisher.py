"""The embedding of GGUF files, rounded by what its errors cost downstream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from tests.test_solving import SAMPLES, left_in, model
from zenconvert import calibrate, convert, open_checkpoint
from zenconvert.batch.production import Variant, gather, produce
from zenconvert.calib.solvers.embedding import embedding_rows
from zenconvert.calib.statistics import RowFisher
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.errors import UsageError
from zenconvert.ggml.encoding import encoding_named
from zenconvert.model.target import Target
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating

TYPE, EMBEDDING = "gguf:q4_k_m", "token_embd.weight"


@pytest.fixture(scope="module", params=[False, True], ids=["apart", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, with a head of its own and without."""
    folder = tmp_path_factory.mktemp("fisher") / "model"
    return model(folder, tie_word_embeddings=request.param)


@pytest.fixture(scope="module")
def statistics(source: Path) -> Path:
    """Its statistics, with a walk back."""
    out = source.parent / "model.stats"
    calibrate(source, out, purposes=["gptq"], fisher=True, **SAMPLES)
    return out


@pytest.fixture(scope="module")
def files(source: Path, statistics: Path) -> tuple[Path, Path, Any]:
    """Rounded, solved, and what was said of solving."""
    rounded, solved = source.parent / "rounded.gguf", source.parent / "solved.gguf"
    convert(source, rounded, TYPE, statistics=statistics)
    done = convert(source, solved, TYPE, statistics=statistics, solver="gptq")
    return rounded, solved, done


def tensor(path: Path, name: str = EMBEDDING) -> Any:
    """A tensor as gguf reads it."""
    return next(t for t in gguf.GGUFReader(path).tensors if t.name == name)


def test_errors_of_the_embedding_cost_less(
    source: Path, statistics: Path, files: tuple[Path, Path, Any]
) -> None:
    checkpoint = open_checkpoint(source)
    embedding = checkpoint.tensors["embed.weight"]
    weight = logical_rows(embedding, 0, embedding.rows).astype(np.float64)
    moments = open_statistics(statistics).fisher().moments.double().numpy()
    costs = []
    for path in files[:2]:
        stored = tensor(path)
        errors = weight - quants.dequantize(stored.data, stored.tensor_type)
        costs.append(np.einsum("ri,ij,rj->r", errors, moments, errors))
    theirs, ours = costs
    assert (ours <= theirs * (1 + 1e-6)).all()
    assert ours.sum() < 0.8 * theirs.sum()
    report = files[2].modules["embed.weight"]
    assert report.method == "fisher"
    assert report.error == pytest.approx(report.rtn_error * ours.sum() / theirs.sum(), rel=1e-3)


def test_it_is_named(files: tuple[Path, Path, Any]) -> None:
    rounded, solved = (gguf.GGUFReader(path) for path in files[:2])
    assert set(solved.fields) - set(rounded.fields) == {"quantize.zenconvert.solver"}
    assert solved.fields["quantize.zenconvert.solver"].contents() == "gptq+fisher"
    assert [(t.name, t.tensor_type, t.data_offset) for t in rounded.tensors] == [
        (t.name, t.tensor_type, t.data_offset - solved.data_offset + rounded.data_offset)
        for t in solved.tensors
    ]
    why = next(s.why for s in files[2].plan.steps if s.target == EMBEDDING)
    assert "fisher, weighted relative error" in why


def test_gguf_decodes_what_was_solved(
    source: Path, statistics: Path, files: tuple[Path, Path, Any]
) -> None:
    stored, embedding = tensor(files[1]), open_checkpoint(source).tensors["embed.weight"]
    weight = torch.from_numpy(logical_rows(embedding, 0, embedding.rows))
    encoding = encoding_named(stored.tensor_type.name.lower())
    filled = embedding_rows(weight, encoding, open_statistics(statistics).fisher())
    values = quants.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(values, filled.values.dequantize())


def test_a_walk_and_a_production_give_the_same_bytes(
    source: Path, files: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    wanted, walk = files[1].read_bytes(), Calibrating(**SAMPLES, fisher=True)
    convert(source, tmp_path / "walk.gguf", TYPE, calibrating=walk, solver="gptq")
    assert (tmp_path / "walk.gguf").read_bytes() == wanted
    assert left_in(tmp_path) == {"walk.gguf"}
    variants = [
        Variant("solved", tmp_path / "solved.gguf", Target.parse(TYPE), solver="gptq"),
        Variant("rounded", tmp_path / "rounded.gguf", Target.parse(TYPE)),
    ]
    produce(source, variants, gather(source, variants, walk, tmp_path / "state"))
    assert (tmp_path / "solved.gguf").read_bytes() == wanted
    assert (tmp_path / "rounded.gguf").read_bytes() == files[0].read_bytes()


def test_rounding_does_not_heed_it(
    source: Path, files: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.stats"
    calibrate(source, plain, purposes=["gptq"], **SAMPLES)
    convert(source, tmp_path / "rounded.gguf", TYPE, statistics=plain)
    assert (tmp_path / "rounded.gguf").read_bytes() == files[0].read_bytes()
    convert(source, tmp_path / "solved.gguf", TYPE, statistics=plain, solver="gptq")
    assert (tensor(tmp_path / "solved.gguf").data == tensor(files[0]).data).all()


def test_where_nobody_makes_use_of_it(source: Path, tmp_path: Path) -> None:
    walk = Calibrating(**SAMPLES, fisher=True)
    with pytest.raises(UsageError, match="--solver gptq"):
        convert(source, tmp_path / "out.gguf", TYPE, calibrating=walk)
    with pytest.raises(UsageError, match="no use here"):
        convert(source, tmp_path / "out", "gptq:w4g32", calibrating=walk)
    with pytest.raises(UsageError, match="no room"):
        calibrate(source, tmp_path / "x.gguf", fisher=True, **SAMPLES)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("kind", ["q4_k", "iq3_s", "q8_0"])
@pytest.mark.parametrize("oddity", ["none", "dead", "rank one", "zeros", "infinite"])
def test_it_is_never_worse_than_rounding(kind: str, oddity: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 256, generator=generator) * 0.05
    g = torch.randn(300, 256, generator=generator) * torch.logspace(0, -2, 256)
    moments = g.T @ g
    if oddity == "dead":
        moments[100:] = moments[:, 100:] = 0
    elif oddity == "rank one":
        moments = torch.outer(g[0], g[0])
    elif oddity == "zeros":
        moments = torch.zeros(256, 256)
    elif oddity == "infinite":
        moments[3, 3] = torch.inf
    encoding = encoding_named(kind)
    found = embedding_rows(weight, encoding, RowFisher(moments, 300, 5))
    usual = encoding.encode(weight.numpy(), None)
    assert "5 of 300 tokens had no finite gradients" in found.report.notes
    assert np.isfinite([found.report.error, found.report.rtn_error]).all()
    assert found.report.error <= found.report.rtn_error
    finite = moments.nan_to_num(posinf=0.0).double().numpy()
    errors = [
        weight.double().numpy() - encoding.decode(data, 256) for data in (found.values.data, usual)
    ]
    ours, theirs = (np.einsum("ri,ij,rj->r", e, finite, e) for e in errors)
    assert (ours <= theirs + 1e-6 * theirs.max()).all()
    if oddity == "zeros":
        assert (found.values.data == usual).all()
        assert replace(found.report, notes=()).method == "rtn"
