"""What stands on the disk when a conversion is killed, fails, or meets another one."""

from __future__ import annotations

import errno
import hashlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import Options, convert, plan
from zenconvert.cli import main
from zenconvert.conversion import run
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    NotEnoughResources,
    OutputExists,
    SourceNotFound,
    UsageError,
    ZenError,
)
from zenconvert.planning import Plan

SOURCE = "builtin:zen-nano"
SPLIT = Options(split_max_size=5_000_000)


class Kind(NamedTuple):
    """One shape that an output may have; ``old`` gives other bytes under the same names."""

    name: str
    target: str
    old: str
    options: Options = Options()

    def write(self, folder: Path, *, target: str | None = None, **given: Any) -> dict[str, str]:
        """Convert the bundled model into a folder; what stands there under final names."""
        convert(SOURCE, folder / self.name, target or self.target, options=self.options, **given)
        return finals(folder)


KINDS = {
    "file": Kind("out.gguf", "gguf:f16", "gguf:bf16"),
    "parts": Kind("out.gguf", "gguf:f16", "gguf:bf16", SPLIT),
    "folder": Kind("out", "hf:f16", "hf:bf16"),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def everything(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file below a folder, hidden ones too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def finals(folder: Path) -> dict[str, str]:
    """:func:`everything` but what has a hidden name."""
    return {name: digest for name, digest in everything(folder).items() if name[0] != "."}


def names(folder: Path) -> set[str]:
    """Everything that stands in a folder, hidden things too."""
    return {path.name for path in folder.iterdir()}


def command(source: Path | str, out: Path, target: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "zenconvert", "convert", str(source), str(out), "--to", target, *more
    ]  # fmt: skip


# Killed


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 128 MB: its conversion takes about a second."""
    folder = tmp_path_factory.mktemp("big") / "model"
    folder.mkdir()
    return raw_model(
        folder, "qwen2", vocab_size=MAKERS["qwen2"](folder), bos_token_id=1, eos_token_id=2,
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=4,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "target"), [("out.gguf", "gguf:q4_k_m"), ("out", "hf:f16")])
def test_killed_at_a_random_moment(name: str, target: str, big: Path, tmp_path: Path) -> None:
    good, place = tmp_path / "good", tmp_path / "place"
    good.mkdir()
    place.mkdir()
    convert(big, good / name, target)  # fills the kernel cache before time is taken
    expected = finals(good)
    begin = time.monotonic()
    subprocess.run(command(big, place / name, target), check=True, capture_output=True)
    total = time.monotonic() - begin
    dice = random.Random(20)
    ends = []
    for kill in range(6):
        assert finals(place) == expected
        shutil.rmtree(place)
        place.mkdir()
        with subprocess.Popen(
            command(big, place / name, target), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            time.sleep(total * (0.1 + 0.9 * (kill + dice.random()) / 6))
            process.kill()
        ends.append(process.returncode)
        found = finals(place)
        assert found in ({}, expected)
        convert(big, place / name, target, force=bool(found))
        assert names(place) == {name}
    assert finals(place) == expected
    assert -signal.SIGKILL in ends


CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}


def killed_at_change(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do ``work`` in a process that dies just before its n-th change of the directories.

    ``open`` counts below ``folder`` only. True when there was such a change.
    """
    child = os.fork()
    if child == 0:
        changes = itertools.count()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in CHANGES:
                return
            if event == "open" and not str(arguments[0]).startswith(str(folder)):
                return
            if next(changes) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, -signal.SIGKILL}
    return status != 0


class Death(NamedTuple):
    """One killed run: the final names after it, and all names after the run that followed."""

    after: dict[str, str]
    repaired: dict[str, str]


def every_death(kind: Kind, folder: Path, *, force: bool) -> list[Death]:
    """Kill a run before its first, second, … change; after each, run again and look."""
    deaths: list[Death] = []
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if force:
            kind.write(folder, target=kind.old)
        if not killed_at_change(len(deaths), folder, lambda: kind.write(folder, force=force)):
            return deaths
        after = finals(folder)
        kind.write(folder, force=bool(after))
        deaths.append(Death(after, everything(folder)))


@pytest.mark.parametrize("force", [False, True], ids=["fresh", "replacing"])
@kinds
def test_killed_before_every_change_of_the_disk(kind: Kind, force: bool, tmp_path: Path) -> None:
    """A process of its own forks the runs, for this one may have threads."""
    for part in ("new", "old"):
        (tmp_path / part).mkdir()
    new = kind.write(tmp_path / "new")
    old = kind.write(tmp_path / "old", target=kind.old)
    assert set(old) == set(new)
    assert old != new
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        deaths = pool.submit(every_death, kind, tmp_path / "place", force=force).result()
    assert len(deaths) > 3
    whole = [{}, old, new] if force else [{}, new]
    first = min(new)
    for number, death in enumerate(deaths):
        assert death.repaired == new, f"change {number}"
        if kind is not KINDS["parts"] or first in death.after:
            assert death.after in whole, f"change {number}"
        for name, digest in death.after.items():  # parts without the first, which nothing opens
            assert digest in {new[name], old[name] if force else None}


def test_what_a_run_with_other_options_left_goes_too(tmp_path: Path) -> None:
    kind = KINDS["parts"]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_killed_while_splitting, tmp_path).result()
    assert len(names(tmp_path)) > 2
    assert not finals(tmp_path)
    convert(SOURCE, tmp_path / kind.name, kind.target)
    assert names(tmp_path) == {kind.name}


def _killed_while_splitting(folder: Path) -> bool:
    """Die before the fourth file of the output is opened (the lock is the first)."""
    return killed_at_change(4, folder, lambda: KINDS["parts"].write(folder))


@kinds
def test_interrupted(
    kind: Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    after(monkeypatch, "pwrite", 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    split = ["--split-max-size", "5M"] if kind.options is SPLIT else []
    arguments = ["zenconvert", *command(SOURCE, tmp_path / kind.name, kind.target, *split)[3:]]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 7
    assert "Traceback" not in capsys.readouterr().err
    assert not names(tmp_path)


# An output that is there already


@kinds
def test_an_existing_output_is_replaced_only_with_force(kind: Kind, tmp_path: Path) -> None:
    old = kind.write(tmp_path, target=kind.old)
    split = ["--split-max-size", "5M"] if kind.options is SPLIT else []
    arguments = command(SOURCE, tmp_path / kind.name, kind.target, *split)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == old
    subprocess.run([*arguments, "--force"], capture_output=True, check=True)
    (tmp_path / "fresh").mkdir()
    new = kind.write(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert everything(tmp_path) == new
    assert new != old


def test_force_replaces_neither_a_foreign_folder_nor_a_device(tmp_path: Path) -> None:
    precious = tmp_path / "photos" / "cat.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"cat")
    os.mkfifo(tmp_path / "fifo")
    for name in ("photos", "fifo"):
        for target in ("gguf:f16", "hf:f16"):
            with pytest.raises(OutputExists):
                convert(SOURCE, tmp_path / name, target, force=True)
    assert precious.read_bytes() == b"cat"
    assert (tmp_path / "fifo").is_fifo()
    assert names(tmp_path) == {"photos", "fifo"}


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        kind = KINDS[name]
        real = tmp_path / f"real-{name}"
        real.mkdir()
        old = kind.write(real, target=kind.old)
        out = tmp_path / kind.name
        out.symlink_to(real / kind.name)
        with pytest.raises(OutputExists):
            kind.write(tmp_path)
        kind.write(tmp_path, force=True)
        assert everything(real) == old
        assert not out.is_symlink()
        assert out.exists()


@pytest.mark.parametrize("kind", [KINDS["file"], KINDS["folder"]], ids=["file", "folder"])
def test_an_output_that_appears_meanwhile_is_kept(kind: Kind, tmp_path: Path) -> None:
    out = tmp_path / kind.name

    def appear(done: int, total: int) -> None:
        if done == total:
            out.write_bytes(b"mine")

    with pytest.raises((OutputExists, UsageError)):
        kind.write(tmp_path, progress=appear)
    assert out.read_bytes() == b"mine"
    assert names(tmp_path) == {kind.name}


# Disks that are full or fail


def after(
    monkeypatch: pytest.MonkeyPatch, function: str, calls: int, then: Callable[[], object]
) -> None:
    """Let ``os.function`` do ``then`` first, in every call after so many."""
    real, count = getattr(os, function), itertools.count()

    def wrapped(*arguments: Any) -> Any:
        if next(count) >= calls:
            then()
        return real(*arguments)

    monkeypatch.setattr(os, function, wrapped)


def fail(number: int) -> Callable[[], object]:
    def failing() -> None:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize(
    ("function", "calls"), [("posix_fallocate", 0), ("pwrite", 0), ("pwrite", 20), ("fsync", 0)]
)
@kinds
def test_a_full_disk(
    kind: Kind,
    function: str,
    calls: int,
    existing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = kind.write(tmp_path, target=kind.old) if existing else {}
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        after(patch, function, calls, fail(errno.ENOSPC))
        with pytest.raises(NotEnoughResources, match=kind.name):
            kind.write(tmp_path, force=existing)
    assert everything(tmp_path) == before
    assert names(tmp_path) == {name.split("/")[0] for name in before}
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    for name in ("file", "folder"):
        size = plan(SOURCE, KINDS[name].target).output_bytes
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, size=size: usage._replace(free=size - 1))
            after(patch, "open", 0, pytest.fail)
            with pytest.raises(NotEnoughResources, match=str(size)):
                KINDS[name].write(tmp_path)
        assert not names(tmp_path)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_limit_of_the_system(name: str, tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow."""
    limit = 1_000_000
    done = subprocess.run(
        command(SOURCE, tmp_path / KINDS[name].name, KINDS[name].target),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert not names(tmp_path)


@kinds
def test_short_reads_and_writes_are_continued(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may do less than it was asked for."""
    for part in ("whole", "short"):
        (tmp_path / part).mkdir()
    expected = kind.write(tmp_path / "whole")
    pread, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda f, b, at: pread(f, [b[0][: len(b[0]) // 2 + 1]], at))
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[: len(data) // 2 + 1], at))
    assert kind.write(tmp_path / "short") == expected


@kinds
def test_everything_is_on_the_disk_before_it_gets_its_name(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    checked = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    def checking(function: str) -> Callable[..., None]:
        real = getattr(os, function)

        def checked_rename(source: Path, target: Path, **given: Any) -> None:
            source = Path(source)
            assert {source, *source.rglob("*")} <= synced
            real(source, target, **given)
            checked.append(target)

        return checked_rename

    monkeypatch.setattr(os, "fsync", record)
    for function in ("rename", "replace"):
        monkeypatch.setattr(os, function, checking(function))
    kind.write(tmp_path)
    assert {Path(path).name for path in checked} == names(tmp_path)
    assert tmp_path in synced


# Sources that cannot be read


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    return raw_model(
        folder, "qwen2", vocab_size=MAKERS["qwen2"](folder), bos_token_id=1, eos_token_id=2
    )


def refused(planned: Plan, out: Path) -> ZenError:
    """Run a plan that cannot be carried out; nothing may be left of it."""
    before = names(out.parent)
    with pytest.raises(ZenError) as caught:
        run(planned, out)
    assert names(out.parent) == before
    return caught.value


@pytest.mark.parametrize("target", ["gguf:f16", "gguf:q8_0", "hf:f16"])
def test_weights_that_vanish_or_shrink_after_the_plan(target: str, source: Path) -> None:
    planned, out = plan(source, target, out="out"), source.parent / "out"
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
@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
def test_weights_that_cannot_be_read(
    target: str, number: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(monkeypatch, "preadv", 5, fail(number))
    planned = plan(source, target, out="out")
    error = refused(planned, source.parent / "out")
    assert isinstance(error, InvalidInput)
    assert "model.safetensors" in str(error)
    assert os.strerror(number) in str(error)


def test_side_files_that_vanish_or_change_after_the_plan(source: Path) -> None:
    planned, out = plan(source, "hf:f16", out="out"), source.parent / "out"
    side = source / "tokenizer_config.json"
    whole = side.read_bytes()
    for damaged in (whole[:-10], whole + b" ", None):
        if damaged is None:
            side.unlink()
        else:
            side.write_bytes(damaged)
        error = refused(planned, out)
        assert isinstance(error, InvalidInput)
        assert str(side) in str(error)
    side.write_bytes(whole)
    run(planned, out)
    assert (out / side.name).read_bytes() == whole


# Two runs for one output


@kinds
def test_two_runs_for_one_output(kind: Kind, tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
    expected, place = kind.write(tmp_path / "one"), tmp_path / "two"
    refusals = []

    def second(done: int, total: int) -> None:
        if not refusals:
            before = names(place)
            with pytest.raises(UsageError, match="another run"):
                kind.write(place, target=kind.old)
            assert names(place) == before
            refusals.append(done)

    assert kind.write(place, progress=second) == expected
    assert refusals
    assert names(place) == names(tmp_path / "one")


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_run_that_ends_while_another_waits_for_its_lock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was locked is not what stands there any more."""
    import fcntl

    kind, flock = KINDS[name], fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        for path in tmp_path.iterdir():
            path.rename(tmp_path / "gone")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="another run"):
        kind.write(tmp_path)
    assert names(tmp_path) == {"gone"}


# Places where no output can be


@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
@pytest.mark.parametrize("out", ["absent/out", "file/out", "x" * 300, "x" * 252, "y" * 300 + "/x"])
def test_places_where_no_output_can_be(target: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    done = subprocess.run(
        command(SOURCE, tmp_path / out, target), capture_output=True, text=True, check=False
    )
    assert done.returncode in {2, 4}
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == everything(tmp_path) | {}
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_bytes() == b"in the way"


@kinds
def test_a_long_name(kind: Kind, tmp_path: Path) -> None:
    name = "x" * 200 + ".gguf"
    convert(SOURCE, tmp_path / name, kind.target, options=kind.options)
    assert all(found.startswith("x" * 200) for found in names(tmp_path))


def test_a_file_stands_where_a_folder_should_come(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(OutputExists):
            convert(SOURCE, tmp_path / "out", "hf:f16", force=force)
    assert everything(tmp_path) == {"out": hashlib.sha256(b"mine").hexdigest()}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS.values():
        with monkeypatch.context() as patch:
            after(patch, "open", 0, fail(errno.EROFS))
            after(patch, "mkdir", 0, fail(errno.EROFS))
            with pytest.raises(UsageError, match=os.strerror(errno.EROFS)):
                planned = plan(SOURCE, kind.target, options=kind.options, out=kind.name)
                run(planned, tmp_path / kind.name)
        assert not names(tmp_path)
