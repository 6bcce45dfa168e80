"""The cache: digests and reference states are taken once, and never wrongly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import raw_model
from zenconvert import open_checkpoint, verify
from zenconvert.reference.reference import Reference
from zenconvert.texts.windows import Window
from zenconvert.verification import cache, digests, states
from zenconvert.verification.states import open_states, reference_states, states_key

Gguf = Callable[[str, str], Path]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ZENCONVERT_CACHE", str(folder))
    return folder


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as written long ago."""
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 1000)
    time.sleep(0.01)
    return path


def test_two_at_a_time_make_one_file_once(tmp_path: Path) -> None:
    path, made = tmp_path / "folder" / "file", list[str]()

    def make(name: str) -> None:
        with cache.taking_turns(path):
            if not path.exists():
                time.sleep(0.3)  # both are here by now
                made.append(name)
                path.write_text(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, ("one", "other")))
    assert [path.read_text()] == made
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_without_a_place_for_the_lock_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with cache.taking_turns(tmp_path / "file" / "below"), cache.taking_turns(tmp_path / "file/x"):
        pass


def nothing(done: int, total: int) -> None:
    pass


def test_the_folder_is_the_variables_or_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZENCONVERT_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.cache_folder() == Path("/caches/zenconvert")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "zenconvert"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder() == Path.home() / "Library" / "Caches" / "zenconvert"


def test_a_digest_is_taken_once(
    empty: Path, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digests.file_digest(settled)
    monkeypatch.setattr(digests, "read_digest", lambda path: pytest.fail("read again"))
    assert digests.file_digest(settled) == first


@pytest.mark.parametrize("how", ["bytes", "bytes, with the old times", "another file"])
def test_a_changed_file_is_read_again(how: str, empty: Path, settled: Path) -> None:
    first, before = digests.file_digest(settled), settled.stat()
    if how == "another file":
        other = settled.with_name("other")
        other.write_bytes(b"abd" * 1000)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(settled)
    else:
        settled.write_bytes(b"abd" * 1000)
        if how != "bytes":
            os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    time.sleep(0.01)
    assert digests.file_digest(settled) != first


def test_a_file_just_written_is_not_remembered(empty: Path, tmp_path: Path) -> None:
    path = tmp_path / "fresh"
    path.write_bytes(b"x")
    digests.file_digest(path)
    assert not list(empty.rglob("*.json"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 1}', "\udcff"])
def test_a_broken_entry_is_no_digest(content: str, empty: Path, settled: Path) -> None:
    first = digests.file_digest(settled)
    (entry,) = empty.rglob("*.json")
    entry.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert digests.file_digest(settled) == first


def test_the_second_candidate_costs_no_reference_pass(
    empty: Path,
    model: Callable[[str], Path],
    gguf: Gguf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference, candidate = model("llama3"), gguf("llama3", "q8_0")
    text = tmp_path / "text.txt"
    text.write_text("Nobody waits for the ferry at nine.", encoding="utf-8")
    first = verify(reference, candidate, text=text)
    passes: list[Path] = []
    block = Reference.block

    def counted(self: Reference, layer: int, weights: Any) -> object:
        passes.append(self.checkpoint.path)
        return block(self, layer, weights)

    monkeypatch.setattr(Reference, "block", counted)
    second = verify(reference, candidate, text=text)
    assert second == first
    assert set(passes) == {candidate}
    for file in empty.rglob("*.np?"):
        file.write_bytes(file.read_bytes()[:-8])
    assert verify(reference, candidate, text=text) == first
    assert reference in passes


def test_states_are_kept_by_everything_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(raw_model(tmp_path / "a"))
    other = open_checkpoint(raw_model(tmp_path / "b", rope_theta=5000.0))
    windows, cut = (
        [Window("s", "en", (1, 2, 3))],
        [Window("s", "en", (1, 2)), Window("s", "", (3,))],
    )
    key = states_key(checkpoint, "0" * 64, windows, "cpu")
    assert key == states_key(checkpoint, "0" * 64, [Window("t", "de", (1, 2, 3))], "cpu")
    different = [
        states_key(other, "0" * 64, windows, "cpu"),
        states_key(checkpoint, "1" * 64, windows, "cpu"),
        states_key(checkpoint, "0" * 64, cut, "cpu"),
        states_key(checkpoint, "0" * 64, windows, "cuda"),
    ]
    monkeypatch.setattr(states, "version", lambda name: "another")
    different.append(states_key(checkpoint, "0" * 64, windows, "cpu"))
    assert len({key, *different}) == 6


def test_without_a_usable_cache_a_temporary_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ZENCONVERT_CACHE", str(tmp_path / "file"))
    checkpoint = open_checkpoint(raw_model(tmp_path / "a", num_hidden_layers=1))
    windows = [Window("s", "en", (1, 2, 3)), Window("s", "en", (4, 5))]
    found = reference_states(checkpoint, windows, "key", device="cpu", progress=nothing)
    assert found.values.shape == (5, 256)
    np.testing.assert_array_equal(found.rows(1, 0, 2).numpy(), found.values[3:])


def test_a_full_disk_keeps_nothing_and_stops_nobody(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache.new_file(empty / "a" / "whole") as temporary:
        assert temporary is not None
        temporary.write_text("x")
    assert (empty / "a" / "whole").read_text() == "x"

    def fill(temporary: Path | None) -> None:
        assert temporary is not None
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with cache.new_file(empty / "a" / "cut") as temporary:
        fill(temporary)
    assert [p.name for p in (empty / "a").iterdir()] == ["whole"]


def test_room_is_made_by_what_was_unused_for_longest(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.mkdir()
    for age, name in enumerate(("newest", "middle", "oldest")):
        (empty / name).write_bytes(b"x" * 100)
        os.utime(empty / name, (1e9 - age, 1e9 - age))
    left = empty / ".dead.partial"
    left.write_bytes(b"x")
    os.utime(left, (1e9, 1e9))
    free = type("Usage", (), {"free": 350})
    monkeypatch.setattr("zenconvert.verification.cache.shutil.disk_usage", lambda path: free)
    with cache.new_file(empty / "new", size=100) as temporary:
        assert temporary is not None
        temporary.write_bytes(b"x")
    # 300 used and 350 free; a further 100 may not leave less free than used
    assert sorted(p.name for p in empty.iterdir()) == ["middle", "new", "newest"]
    with cache.new_file(empty / "huge", size=10_000) as temporary:
        assert temporary is None


def test_concurrent_runs_leave_one_whole_file(empty: Path, tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from zenconvert.verification.cache import new_file\n"
        "for _ in range(40):\n"
        "    with new_file(Path(sys.argv[1]), 100) as temporary:\n"
        "        np.save(temporary.open('wb'), np.full((3, 4), 7, dtype=np.float32))\n"
    )
    target = empty / "states" / "same.npy"
    windows = [Window("s", "en", (1, 2, 3))]
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(target)], cwd=Path.cwd())
        for _ in range(2)
    ]
    while any(run.poll() is None for run in runs):
        if target.exists():
            found = open_states(target, windows)
            assert found is not None
            assert (found.values == 7).all()
    assert [run.returncode for run in runs] == [0, 0]
    assert [p.name for p in target.parent.iterdir()] == ["same.npy"]
