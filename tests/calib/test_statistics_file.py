"""Statistics files hold what the walk gave, survive kills, and know their model."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.calib.walking import assert_same, gather, reference, selection
from tests.tiny import raw_model
from zenconvert import convert, open_checkpoint
from zenconvert.calib import statistics_file
from zenconvert.calib.layer import LayerStatistics
from zenconvert.calib.statistics_file import StatisticsRun
from zenconvert.calib.statistics_layout import packed_row, unpack
from zenconvert.calib.statistics_reader import load_importance, open_statistics
from zenconvert.calib.walk import WalkSettings, walk
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    NotEnoughResources,
    SourceNotFound,
    UsageError,
)
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]


def write(folder: Path, out: Path, *, final_states: bool = False, **settings: Any) -> Path:
    run = StatisticsRun(
        reference(folder), selection(), WalkSettings(**settings), final_states=final_states
    )
    run.run(out)
    assert out.stat().st_size == run.layout.size
    return out


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``model`` and its ``x.stats``."""
    folder = tmp_path_factory.mktemp("mixtral")
    raw_model(folder / "model", "mixtral", intermediate_size=640)  # moments in uneven pieces
    write(folder / "model", folder / "x.stats", moments=True, final_states=True)
    return folder


def test_a_file_holds_what_the_walk_gave(mixtral: Path) -> None:
    expected = gather(mixtral / "model", selection(), moments=True)
    found = open_statistics(mixtral / "x.stats")
    assert found.has_moments
    assert found.languages == ("en", "zh", "fr")
    items = {
        name: found.of(modules[-1], moments=not name.endswith("router"))
        for name, modules in found.inputs.items()
    }
    assert_same(items, expected)
    for name, item in items.items():
        assert item.modules == expected[name].modules
        np.testing.assert_array_equal(item.token_weights, expected[name].token_weights)
        np.testing.assert_array_equal(found.importance(name), expected[name].importance())
    assert [path.name for path in sorted(mixtral.iterdir())] == ["model", "x.stats"]


def test_routed_tokens_and_final_states_come_back(mixtral: Path) -> None:
    found = open_statistics(mixtral / "x.stats")
    for part in walk(reference(mixtral / "model"), selection(), WalkSettings()):
        if part.layer is not None:
            np.testing.assert_array_equal(found.routed(part.layer), part.routed)
        else:
            states = dict(part.states())
    assert found.routed(2) is None
    for number, (window, rows) in enumerate(found.states()):
        expected = selection().windows[number]
        assert (window.language, window.ids) == (expected.language, expected.ids)
        assert torch.equal(rows, states[number])


def test_others_can_read_it(mixtral: Path) -> None:
    """It is a plain safetensors file that describes itself."""
    with safe_open(mixtral / "x.stats", framework="numpy") as file:
        metadata = file.metadata()
        squares = file.get_tensor("layers.1.attn.q.squares")
    assert squares.shape == (3, 256)
    assert json.loads(metadata["languages"]) == ["en", "zh", "fr"]
    assert json.loads(metadata["inputs"])["layers.1.attn.q"] == [
        f"layers.1.attn.{name}" for name in "qkv"
    ]
    assert json.loads(metadata["settings"])["dtype"] == "f32"
    assert json.loads(metadata["versions"])["torch"] == torch.__version__
    assert json.loads(metadata["samples"])["digest"] == selection().digest


def test_what_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", "llama3")
    found = open_statistics(write(folder, tmp_path / "x.stats"))
    assert not found.has_moments
    assert found.routed(0) is None
    with pytest.raises(UsageError, match="no second moments"):
        found.of("layers.0.attn.q", moments=True)
    with pytest.raises(UsageError, match="no hidden states"):
        next(found.states())
    with pytest.raises(UsageError, match=r"no statistics of 'layers\.9\.attn\.q'"):
        found.importance("layers.9.attn.q")


def test_experts_that_nobody_reached_weigh_every_channel_the_same(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", "mixtral", num_local_experts=64)
    importance = load_importance(
        write(folder, tmp_path / "x.stats"), open_checkpoint(folder), logical_rows
    )
    counts = open_statistics(tmp_path / "x.stats").routed(0)
    assert counts is not None
    (idle, *_) = np.flatnonzero(counts.sum(0) == 0)
    busy = int(counts.sum(0).argmax())
    assert (importance[f"layers.0.moe.{idle}.down.weight"] == 1).all()
    assert (importance[f"layers.0.moe.{busy}.down.weight"] != 1).any()


def test_a_packed_triangle_comes_back() -> None:
    random = np.random.default_rng(0)
    square = random.standard_normal((7, 7)).astype(np.float32)
    square += square.T
    packed = square[np.triu_indices(7)]
    np.testing.assert_array_equal(unpack(packed, 7), square)
    assert [packed[packed_row(n, 7)] for n in range(7)] == np.diag(square).tolist()


def test_killed_runs_end_in_the_same_bytes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # sums of a forward pass depend on how many threads share it
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    folder = raw_model(tmp_path / "model", "mixtral", num_hidden_layers=3)
    write(folder, tmp_path / "whole.stats", moments=True, final_states=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.calib.killed", str(tmp_path), "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    killed, whole = (
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("killed.stats", "whole.stats")
    )
    assert killed == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.stats", "model", "whole.stats"]


def test_done_layers_are_not_computed_again(tmp_path: Path) -> None:
    """An interruption in the second layer leaves the first one, for the same run only."""
    folder, out = raw_model(tmp_path / "model", num_hidden_layers=3), tmp_path / "x.stats"

    class Interrupted(Exception):
        pass

    def interrupt(at: Any) -> None:
        if at.layer == 1:
            raise Interrupted

    def passes(**settings: Any) -> int:
        seen: list[int | None] = []
        original = statistics_file._Writer.take

        def take(writer: Any, part: LayerStatistics) -> None:
            seen.append(part.layer)
            original(writer, part)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(statistics_file._Writer, "take", take)
            write(folder, out, **settings)
        return len(seen)

    with pytest.raises(Interrupted):
        StatisticsRun(reference(folder), selection(), WalkSettings()).run(out, progress=interrupt)
    assert not out.exists()
    assert passes() == 3  # two layers and the head
    out.unlink()
    with pytest.raises(Interrupted):
        StatisticsRun(reference(folder), selection(), WalkSettings()).run(out, progress=interrupt)
    assert passes(moments=True) == 4


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", hidden_act="banana")
    with pytest.raises(InvalidInput, match="refuses the config"):
        write(folder, tmp_path / "x.stats")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_space_is_checked_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StatisticsRun(reference(raw_model(tmp_path / "model")), selection(), WalkSettings())
    run.check_disk(tmp_path / "x.stats", run.disk_bytes)
    with pytest.raises(NotEnoughResources, match="--max-disk"):
        run.check_disk(tmp_path / "x.stats", run.disk_bytes - 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=run.disk_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NotEnoughResources, match="are free"):
        run.check_disk(tmp_path / "x.stats", None)


def test_statistics_know_their_model(mixtral: Path, tmp_path: Path) -> None:
    """The same numbers in another format are the same model; other numbers are not."""
    path, source = mixtral / "x.stats", open_checkpoint(mixtral / "model")
    open_statistics(path, source, logical_rows)
    other = open_checkpoint(raw_model(tmp_path / "other", "mixtral", seed=1))
    with pytest.raises(InvalidInput, match="of another model"):
        open_statistics(path, other, logical_rows)
    with pytest.raises(InvalidInput, match="of another model"):
        load_importance(path, other, logical_rows)


def test_formats_share_the_fingerprint(tmp_path: Path) -> None:
    convert("builtin:zen-nano", tmp_path / "x.gguf", "gguf:bf16")
    convert("builtin:zen-nano", tmp_path / "q8.gguf", "gguf:q8_0")
    digests = [
        fingerprint(open_checkpoint(source), logical_rows)
        for source in ("builtin:zen-nano", tmp_path / "x.gguf", tmp_path / "q8.gguf")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_files_that_are_no_statistics_are_refused(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        open_statistics(tmp_path / "absent.stats")
    with pytest.raises(CorruptFile, match="no statistics file"):
        open_statistics(mixtral / "model" / "model.safetensors")
    (tmp_path / "text").write_text("nothing of the kind")
    with pytest.raises(CorruptFile, match="cannot be read"):
        open_statistics(tmp_path / "text")
    (tmp_path / "cut").write_bytes((mixtral / "x.stats").read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="cannot be read"):
        open_statistics(tmp_path / "cut")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "99"),
        ("languages", "[1, 2"),
        ("languages", '["en"]'),
        ("language_weights", "[0, 0, 0]"),
        ("language_weights", '["a", 1, 1]'),
        ("coverage", '[{"tokens": 0}, {"tokens": 3}, {"tokens": 3}]'),
        ("coverage", "{}"),
        ("inputs", "[]"),
        ("model", "7"),
        ("model", None),
    ],
)
def test_metadata_that_cannot_be_are_refused(
    key: str, value: str | None, mixtral: Path, tmp_path: Path
) -> None:
    with safe_open(mixtral / "x.stats", framework="numpy") as file:
        metadata = file.metadata()
    changed = {k: v for k, v in {**metadata, key: value}.items() if v is not None}
    save_file({"x": np.zeros(1)}, tmp_path / "x.stats", changed)
    with pytest.raises(CorruptFile):
        open_statistics(tmp_path / "x.stats")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("squares", np.full((3, 256), -1, dtype=np.float32)),
        ("magnitudes", np.full((3, 256), np.nan, dtype=np.float32)),
        ("squares", np.zeros((2, 256), dtype=np.float32)),
        ("squares", np.zeros(3, dtype=np.float32)),
        ("tokens", np.zeros((3, 1), dtype=np.int64)),
        ("tokens", np.full(3, -1, dtype=np.int64)),
        ("moments", np.zeros(9, dtype=np.float32)),
        ("magnitudes", None),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", num_hidden_layers=1)
    path = write(folder, tmp_path / "x.stats", moments=True)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = {**load_file(path), f"layers.0.attn.q.{name}": value}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, metadata)
    with pytest.raises(CorruptFile):
        open_statistics(path).of("layers.0.attn.v", moments=True)
