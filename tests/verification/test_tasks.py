"""Task drift: items paired, flips counted, through lm-evaluation-harness on a task of our own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy.stats import binomtest

from tests.formats.test_tokenizer_files import without_pre
from zenconvert import compare_tasks, convert
from zenconvert.cli import cli
from zenconvert.errors import MissingDependency, SourceNotFound, UnknownTokenizer, UsageError
from zenconvert.verification.tasks import TaskResult, paired

SOURCE = "builtin:zen-nano"
TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task files, with the place of their data filled in."""
    home = tmp_path_factory.mktemp("tasks")
    for file in TASKS.glob("*.yaml"):
        text = file.read_text(encoding="utf-8").replace("DATA", str(TASKS / "continuations.jsonl"))
        (home / file.name).write_text(text, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has moved far enough for answers to change."""
    out = tmp_path_factory.mktemp("candidate") / "nano.gguf"
    convert(SOURCE, out, "gguf:tq2_0")
    return out


def sample(number: int, value: float, filter_name: str = "none") -> dict[str, Any]:
    """One item as the harness logs it."""
    return {
        "doc_id": number, "doc_hash": str(number), "filter": filter_name,
        "metrics": ["acc"], "acc": value,
    }  # fmt: skip


def test_items_are_paired_whatever_their_order() -> None:
    before = [sample(0, 1), sample(1, 1), sample(2, 0), sample(3, 0)]
    after = [sample(3, 1), sample(1, 1), sample(0, 0), sample(2, 0)]
    [found] = paired({"task": before}, {"task": after}).results
    assert found == TaskResult("task", "acc", 4, 0.5, 0.5, broken=1, mended=1)
    assert found.flips == 0.5  # though the accuracy is the same


def test_filters_are_metrics_of_their_own_and_shares_are_not_paired() -> None:
    rows = [sample(0, 1, "strict"), sample(0, 0, "loose"), sample(1, 0.25, "soft")]
    found = paired({"task": rows}, {"task": rows})
    assert {(r.metric, r.reference) for r in found.results} == {("acc,strict", 1), ("acc,loose", 0)}
    assert found.unpaired == ("task: acc,soft",)


@pytest.mark.parametrize(("broken", "mended"), [(0, 0), (1, 0), (9, 1), (3, 3), (40, 21)])
def test_the_test_is_the_exact_binomial_one(broken: int, mended: int) -> None:
    found = TaskResult("task", "acc", 100, 0.5, 0.5, broken, mended)
    count = broken + mended
    expected = binomtest(mended, count).pvalue if count else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-12)
    assert found.worse == (expected < 0.05)


def test_a_model_does_not_drift_from_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the harness would describe the user's folder by git, and the machine by pip and others
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    drift = compare_tasks(SOURCE, SOURCE, ["zen_continuations"], include=folder, limit=4)
    assert {r.metric for r in drift.results} == {"acc", "acc_norm"}
    assert all(r.items == 4 and r.flips == 0 and r.p_value == 1 for r in drift.results)


def test_likelihoods_and_answers_through_a_native_engine(
    folder: Path, candidate: Path, tmp_path: Path
) -> None:
    # the same weights in floats: with integers llama.cpp rounds activations as well, each build in
    # its own way, and an answer that is nearly a tie goes either way
    floats = tmp_path / "floats.gguf"
    convert(candidate, floats, "gguf:f32")
    found = compare_tasks(
        SOURCE, floats, ["zen_*"], engine="llamacpp", include=folder, limit=8
    )  # fmt: skip
    by_metric = {(r.task, r.metric): r for r in found.results}
    assert set(by_metric) == {
        ("zen_continuations", "acc"), ("zen_continuations", "acc_norm"),
        ("zen_next_word", "exact_match"),
    }  # fmt: skip
    again = compare_tasks(
        SOURCE, candidate, ["zen_continuations"], reference_engine="transformers",
        include=folder, limit=8,
    )  # fmt: skip
    # the same weights, in our graph and in llama.cpp; the reference in bfloat16 both times
    for result in again.results:
        assert result == by_metric["zen_continuations", result.metric]
    flips = [r.broken + r.mended for r in found.results]
    assert flips == sorted(flips, reverse=True)


def test_the_command_line(folder: Path, candidate: Path) -> None:
    arguments = ["tasks", SOURCE, str(candidate), "--tasks", "zen_continuations"]
    given = ["--include", str(folder), "--limit", "2", "--json"]
    done = CliRunner().invoke(cli, [*arguments, *given])
    assert done.exit_code == 0, done.output
    assert [r["items"] for r in json.loads(done.stdout)["results"]] == [2, 2]


def test_what_cannot_be_asked_is_said(
    folder: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="knows no task 'zen_nothing'"):
        compare_tasks(SOURCE, candidate, ["zen_nothing"], include=folder)
    with pytest.raises(UsageError, match="one engine of"):
        compare_tasks(SOURCE, candidate, ["zen_continuations"], engine="all")
    with pytest.raises(UsageError, match=r"torch engine does not write.*--engine llamacpp"):
        compare_tasks(
            candidate, candidate, ["zen_next_word"], include=folder, limit=1
        )  # fmt: skip
    (folder / "absent.yaml").write_text(
        (TASKS / "next_word.yaml").read_text().replace("DATA", str(folder / "none.jsonl"))
        .replace("zen_next_word", "absent")
    )  # fmt: skip
    with pytest.raises(SourceNotFound, match="the data of absent"):
        compare_tasks(SOURCE, candidate, ["absent"], include=folder)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependency, match=r"zenconvert\[tasks\]"):
        compare_tasks(SOURCE, candidate, ["zen_continuations"], include=folder)


def test_a_file_that_does_not_say_how_it_cuts_text(folder: Path, tmp_path: Path) -> None:
    convert(SOURCE, tmp_path / "f32.gguf", "gguf:f32")
    old = without_pre(tmp_path / "f32.gguf", tmp_path / "old.gguf")
    with pytest.raises(UnknownTokenizer, match="--pre"):
        compare_tasks(SOURCE, old, ["zen_continuations"], include=folder, limit=2)
    drift = compare_tasks(SOURCE, old, ["zen_continuations"], include=folder, limit=2, pre="qwen2")
    assert all(r.items == 2 and r.flips == 0 for r in drift.results)
