"""GGUF files whose blocks a solver fills: same types and sizes, nearer to the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from tests.families import FAMILIES, one_period
from tests.test_solving import SAMPLES, left_in, model
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import calibrate, convert, open_checkpoint
from zenconvert.batch.production import Variant, gather, produce
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.model.target import Target
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating

TYPE = "gguf:q4_k_m"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama: its rows of q and k stand in another order in GGUF files."""
    return model(tmp_path_factory.mktemp("blocks") / "model")


@pytest.fixture(scope="module")
def statistics(source: Path) -> Path:
    """Its statistics."""
    out = source.parent / "model.stats"
    calibrate(source, out, purposes=["gptq"], **SAMPLES)
    return out


@pytest.fixture(scope="module")
def files(source: Path, statistics: Path) -> tuple[Path, Path, Any]:
    """Rounded, solved, and what was said of solving."""
    rounded, solved = source.parent / "rounded.gguf", source.parent / "solved.gguf"
    convert(source, rounded, TYPE, statistics=statistics)
    done = convert(source, solved, TYPE, statistics=statistics, solver="gptq")
    return rounded, solved, done


def test_types_and_places_are_those_of_llamacpp(files: tuple[Path, Path, Any]) -> None:
    rounded, solved = (gguf.GGUFReader(path) for path in files[:2])
    facts = [
        [(t.name, t.tensor_type, t.shape.tolist()) for t in f.tensors] for f in (rounded, solved)
    ]
    assert facts[0] == facts[1]
    added = set(solved.fields) - set(rounded.fields)
    assert added == {"quantize.zenconvert.solver"}
    assert solved.fields["quantize.zenconvert.solver"].contents() == "gptq"
    others = {
        theirs.name
        for ours, theirs in zip(solved.tensors, rounded.tensors, strict=True)
        if (ours.data != theirs.data).any()
    }
    weights = {t.name for t in rounded.tensors if t.tensor_type.name.startswith("Q")}
    assert others == weights - {"token_embd.weight"}


def test_every_module_is_told(source: Path, files: tuple[Path, Path, Any]) -> None:
    done = files[2]
    linear = {
        n for n in open_checkpoint(source).tensors if n.startswith("layers.") and "norm" not in n
    }
    assert set(done.modules) == {*linear, "head.weight"}
    assert all(report.error < report.rtn_error for report in done.modules.values())
    whys = {step.target: step.why for step in done.plan.steps if step.action == "quantize"}
    assert all("gptq, weighted relative error" in w for n, w in whys.items() if "embd" not in n)
    assert not any(step.exact for step in done.plan.steps if step.target in whys)


def test_a_walk_and_a_production_give_the_same_bytes(
    source: Path, files: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    wanted = files[1].read_bytes()
    convert(source, tmp_path / "walk.gguf", TYPE, calibrating=Calibrating(**SAMPLES), solver="gptq")
    assert (tmp_path / "walk.gguf").read_bytes() == wanted
    variants = [
        Variant("solved", tmp_path / "solved.gguf", Target.parse(TYPE), solver="gptq"),
        Variant("rounded", tmp_path / "rounded.gguf", Target.parse(TYPE)),
    ]
    gathered = gather(source, variants, Calibrating(**SAMPLES), tmp_path / "state")
    produce(source, variants, gathered)
    assert (tmp_path / "solved.gguf").read_bytes() == wanted
    assert (tmp_path / "rounded.gguf").read_bytes() == files[0].read_bytes()


_DYING = """
import os, signal, sys
from zenconvert import convert
from zenconvert.solve.store import SolvedStore
put = SolvedStore.put
def dying(self, layer, solution):
    put(self, layer, solution)
    if layer == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
SolvedStore.put = dying
convert(sys.argv[1], sys.argv[2], "gguf:q4_k_m", statistics=sys.argv[3], solver="gptq")
"""


def test_a_killed_run_goes_on(
    source: Path, statistics: Path, files: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", _DYING, str(source), str(out), str(statistics), "1"]
    assert subprocess.run(command, check=False).returncode < 0
    assert left_in(tmp_path) == {".out.gguf.solving"}
    convert(source, out, TYPE, statistics=statistics, solver="gptq")
    assert out.read_bytes() == files[1].read_bytes()
    assert left_in(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize("kind", ["gguf:bf16", "gguf:q8_0", "gguf:iq2_xs"])
def test_types_without_codes_to_choose_are_as_without_a_solver(
    kind: str, source: Path, statistics: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "plain.gguf", kind, statistics=statistics)
    convert(source, tmp_path / "solved.gguf", kind, statistics=statistics, solver="gptq")
    plain, solved = (gguf.GGUFReader(tmp_path / f"{n}.gguf") for n in ("plain", "solved"))
    for ours, theirs in zip(solved.tensors, plain.tensors, strict=True):
        assert ours.tensor_type == theirs.tensor_type
        nested = theirs.tensor_type.name in {"Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"}
        if not nested:
            assert (ours.data == theirs.data).all(), ours.name


@pytest.mark.parametrize("family", ["phi", "mixtral", "gemma3"])
def test_files_have_the_error_that_was_told(family: str, tmp_path: Path) -> None:
    """Rows that are joined, stacked or in another order: of the file, opened again."""
    entry = FAMILIES[family]
    folder = tmp_path / "model"
    folder.mkdir()
    vocab = MAKERS[entry.tokenizer](folder)
    raw_model(folder, one_period(entry.config), vocab_size=vocab)
    calibrate(folder, tmp_path / "model.stats", purposes=["gptq"], **SAMPLES)
    out = tmp_path / "out.gguf"
    done = convert(folder, out, TYPE, statistics=tmp_path / "model.stats", solver="gptq")
    source, found = open_checkpoint(folder).tensors, open_checkpoint(out).tensors
    statistics = open_statistics(tmp_path / "model.stats")
    assert done.modules
    for name, report in done.modules.items():
        known = statistics.of(name.removesuffix(".weight"), moments=True)
        if known.count and report.method == "gptq":
            assert known.moments is not None
            numbers = [logical_rows(one[name], 0, one[name].rows) for one in (source, found)]
            weight, values = (torch.from_numpy(n.astype("float64")) for n in numbers)
            moments, lost = known.moments.double(), weight - values
            told = (lost @ moments * lost).sum() / (weight @ moments * weight).sum()
            assert report.error == pytest.approx(float(told), rel=0.01), name
