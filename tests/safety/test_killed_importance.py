"""Conversions to GGUF whose blocks weigh what they round, killed and begun again: with a matrix
that is there, and with one that the run gathers itself."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.safety.outputs import Case, after, everything, finals, fresh, names
from tests.safety.test_killed import stopped_at
from zenconvert import calibrate, convert, open_checkpoint, plan
from zenconvert.conversion import run
from zenconvert.errors import OutputExists, PlanError
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.solve.importance import load_importance
from zenconvert.write import naming, one_pass, output

FEW = Calibrating(languages=("en",), tokens_per_language=64, context=32)
TARGET = "gguf:q4_0"


@dataclass(frozen=True)
class Weighed(Case):
    """A conversion with weights, whose journal is written after every tensor."""

    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def write(self, folder: Path, **given: Any) -> None:
        one_pass.REMEMBER_SECONDS = 0  # type: ignore[misc]  # of this process, which is the test's
        run(self.plan, folder / self.out, importance=self.importance, **given)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process to fork from, without threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def imatrix(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model."""
    out = tmp_path_factory.mktemp("matrix") / "imatrix.gguf"
    calibrate(tiny, out, languages=["en"], tokens_per_language=64, context=32)
    return out


def weighed(tiny: Path, imatrix: Path, folder: Path, power: float) -> Weighed:
    """A case with the weights of a matrix, to some power."""
    weights = load_importance(imatrix, open_checkpoint(tiny))
    given = {name: values**power for name, values in weights.items()}
    new = plan(tiny, TARGET, out="out.gguf", importance=imatrix, threads=1)
    run(new, fresh(folder) / "out.gguf", importance=given)
    return Weighed(tiny, "out.gguf", (), new, new, finals(folder), {}, given)


def kills(one: Weighed, following: Weighed, folder: Path) -> int:
    """Kill runs before some of their changes, and run again; the number of kills.

    Another weight begins anew, the same goes on.
    """
    one.write(fresh(folder))  # loads the kernels that the forked ones run
    numbers = itertools.count(1, 6)
    for number in numbers:
        fresh(folder)
        if not stopped_at(number, folder, partial(one.write, folder)):
            return number // 6
        found = finals(folder)
        assert found in ({}, one.new), number
        following.write(folder, force=bool(found))
        assert everything(folder) == following.new, number
    raise AssertionError


def test_killed_with_a_matrix(
    tiny: Path, imatrix: Path, tmp_path: Path, process: ProcessPoolExecutor
) -> None:
    one, other = (weighed(tiny, imatrix, tmp_path / "w", power) for power in (1.0, 2.0))
    assert one.new != other.new
    for following in (one, other):
        assert process.submit(kills, one, following, tmp_path / "place").result() > 5


def test_killed_while_a_matrix_is_gathered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    place, copy = fresh(tmp_path / "place"), tmp_path / "copy"

    def work() -> None:
        convert(tiny, place / "out.gguf", TARGET, calibrating=FEW)

    work()
    expected = everything(place)
    for number in itertools.count():
        fresh(place)
        with monkeypatch.context() as patch:
            # what stands there at this moment is what a killed run would leave
            after(patch, "replace", number, lambda: copy.exists() or shutil.copytree(place, copy))
            work()
        if not copy.exists():
            break
        shutil.rmtree(place)
        copy.rename(place)
        assert names(place) & {".out.gguf.gathered", ".out.gguf.partial"}, number
        work()
        assert everything(place) == expected, number
    assert number > 3


def test_an_output_that_is_there_is_refused_before_a_matrix_is_gathered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "zenconvert.solve.importance.calibrate", lambda *_, **more: pytest.fail("gathered")
    )
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(OutputExists):
        convert(tiny, out, TARGET, calibrating=FEW)
    with pytest.raises(PlanError):
        convert(tiny, tmp_path / "new.gguf", TARGET, calibrating=FEW, exact=True)
    assert names(tmp_path) == {"out.gguf"}


def test_an_early_refusal_gives_old_parts_back(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a late one does: the kill may have come while parts were replaced."""
    case, real = cases["parts"], naming.give_name

    def dying(path: Path, final: Path) -> None:
        if finals(tmp_path):
            raise KeyboardInterrupt
        real(path, final)

    case.write_old(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(output, "give_name", dying)
        patch.setattr(output.Output, "discard", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            case.write(tmp_path, force=True)
    assert finals(tmp_path) not in (case.old, case.new)
    with pytest.raises(OutputExists):
        output.refuse_taken(case.plan.layout, tmp_path / case.out, force=False)
    assert finals(tmp_path) == case.old
