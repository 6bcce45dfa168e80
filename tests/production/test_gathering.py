"""One walk gives the statistics and every solve, and is gone on with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.production.conftest import Production
from tests.production.variants import SAMPLES, calibrating, digests, variants
from zenconvert import calibrate, convert
from zenconvert.batch import shared_walk as gathering
from zenconvert.batch.production import gather, produce
from zenconvert.calib import walk
from zenconvert.calib.workspace import open_workspace
from zenconvert.errors import ConversionFailed, NotEnoughResources, PlanError, UsageError
from zenconvert.reference import memory
from zenconvert.solve.solving import Solving
from zenconvert.solve.store import SolvedStore


def test_statistics_are_those_of_a_calibration(production: Production, tmp_path: Path) -> None:
    """Without the second moments that the solvers had."""
    calibrate(production.source, tmp_path / "x", imatrix=tmp_path / "y", **SAMPLES)
    gathered = production.gathered
    assert (tmp_path / "x").read_bytes() == gathered.statistics.read_bytes()
    assert gathered.imatrix is not None
    assert (tmp_path / "y").read_bytes() == gathered.imatrix.read_bytes()
    with safe_open(gathered.statistics, framework="numpy") as file:
        assert not [name for name in file.keys() if name.endswith("moments")]  # noqa: SIM118


def test_what_provenance_needs_is_told(production: Production) -> None:
    found = production.gathered
    assert digests(found.statistics) == {".": found.statistics_sha256}
    assert found.tokens == {"en": 200, "ar": 200}
    assert (found.samples, found.seed) == ("bundled", 0)
    assert len(found.samples_sha256) == 64
    assert found.failures == {}
    assert found.modules.keys() == {"gptq", "awq", "onnx"}
    assert all(len(reports) == 14 for reports in found.modules.values())


def test_variants_that_differ_in_packing_share_a_solve(production: Production) -> None:
    solved = production.gathered.solved
    assert solved["gptq"] == solved["onnx"] != solved["awq"]
    assert {path.name for path in production.state.iterdir() if path.is_dir()} == {
        solved["gptq"].name,
        solved["awq"].name,
    }


def test_what_is_there_is_not_walked_for_again(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "walk", _never)
    again = gather(production.source, variants(production.out), calibrating(), production.state)
    assert again.modules == production.gathered.modules
    fewer = variants(production.out, "q4", "awq")
    assert gather(production.source, fewer, calibrating(), production.state).solved.keys() == {
        "awq"
    }


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("walked")


class Interrupted(Exception):
    """Not one of ours: it ends everything."""


def test_done_layers_are_not_solved_again(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a killed run left of which variant, the next one makes the rest."""
    put, solved = SolvedStore.put, list[tuple[str, int]]()

    def counted(store: SolvedStore, layer: int, solution: Any) -> None:
        solved.append((store.folder.name.partition("-")[0], layer))
        if solved == [("gptq", 0), ("awq", 0), ("gptq", 1)]:
            raise Interrupted
        put(store, layer, solution)

    monkeypatch.setattr(SolvedStore, "put", counted)
    wanted = variants(tmp_path, "gptq", "awq")
    with pytest.raises(Interrupted):
        gather(production.source, wanted, calibrating(), tmp_path)
    solved.clear()
    gathered = gather(production.source, wanted, calibrating(), tmp_path)
    assert solved == [("gptq", 1), ("awq", 1)]
    for name in ("gptq", "awq"):
        assert digests(gathered.solved[name]) == digests(production.gathered.solved[name])
    assert gathered.statistics_sha256 == production.gathered.statistics_sha256
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not (tmp_path / "walk").exists()


def test_hidden_states_that_come_too_late_for_a_new_variant_are_not_used(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "open_workspace", partial(open_workspace, save_seconds=0))
    take = Solving.take

    def interrupted(solving: Solving, part: Any) -> None:
        if part.layer == 1:
            raise Interrupted
        take(solving, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Solving, "take", interrupted)
        with pytest.raises(Interrupted):
            gather(production.source, variants(tmp_path, "gptq"), calibrating(), tmp_path)
    assert list((tmp_path / "walk").glob("hidden*"))
    gathered = gather(production.source, variants(tmp_path, "awq"), calibrating(), tmp_path)
    assert digests(gathered.solved["awq"]) == digests(production.gathered.solved["awq"])


def test_a_module_beyond_the_bound_fails_its_variant_only(
    production: Production, tmp_path: Path
) -> None:
    strict = variants(tmp_path, "gptq", largest_error=1e-9)
    wanted = [*strict, *variants(tmp_path, "onnx", "q4")]
    gathered = gather(production.source, wanted, calibrating(), production.state)
    assert gathered.failures.keys() == {"gptq"}
    made = produce(production.source, wanted, gathered)
    assert isinstance(made["gptq"], ConversionFailed)
    assert digests(tmp_path / "onnx") == digests(production.out / "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"onnx", "q4.gguf"}


def test_a_solver_that_fails_fails_its_variant_only(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Solving.take

    def failing(solving: Solving, part: Any) -> None:
        if solving.job.solver == "awq":
            raise NotEnoughResources("too little")
        take(solving, part)

    monkeypatch.setattr(Solving, "take", failing)
    wanted = variants(tmp_path, "awq", "gptq")
    gathered = gather(production.source, wanted, calibrating(), tmp_path / "state")
    assert str(gathered.failures["awq"]) == "too little"
    assert gathered.solved.keys() == {"gptq"}
    assert digests(gathered.solved["gptq"]) == digests(production.gathered.solved["gptq"])


def test_moments_that_do_not_fit_leave_the_statistics(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = memory.place

    def small(need: memory.Needs, **given: Any) -> memory.Placement:
        if need.largest_moments:
            raise NotEnoughResources("no room for moments")
        return place(need, **given)

    monkeypatch.setattr(memory, "place", small)
    wanted = variants(tmp_path, "awq", "gptq", "q4")
    gathered = gather(production.source, wanted, calibrating(), tmp_path / "state")
    assert gathered.failures.keys() == {"awq", "gptq"}
    assert gathered.statistics_sha256 == production.gathered.statistics_sha256


def test_a_variant_that_cannot_be_planned_fails_alone(
    production: Production, tmp_path: Path
) -> None:
    wanted = variants(tmp_path, "gptq", exact=True) + variants(tmp_path, "onnx")
    gathered = gather(production.source, wanted, calibrating(), production.state)
    assert isinstance(gathered.failures["gptq"], PlanError)
    assert gathered.solved.keys() == {"onnx"}


def test_a_sequential_walk_serves_one_solve(source: Path, tmp_path: Path) -> None:
    sequential = calibrating(sequential=True)
    with pytest.raises(UsageError, match="serves one solve, and these need several: gptq, awq"):
        gather(source, variants(tmp_path, "q4", "gptq", "awq"), sequential, tmp_path / "state")
    assert not list(tmp_path.iterdir())
    wanted = variants(tmp_path, "gptq", "onnx")  # one solve
    made = produce(source, wanted, gather(source, wanted, sequential, tmp_path / "state"))
    assert all(len(one.modules) == 14 for one in made.values())  # type: ignore[union-attr]
    convert(source, tmp_path / "alone", "gptq:w4g128", calibrating=sequential)
    assert digests(tmp_path / "alone") == digests(tmp_path / "gptq")
