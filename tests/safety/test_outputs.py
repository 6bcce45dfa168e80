"""Outputs that are there already, full and failing disks, two runs at once, impossible places."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.safety.outputs import Case, after, everything, fail, fresh, names
from zenconvert import convert
from zenconvert.base.scratch import mark, open_scratch
from zenconvert.errors import (
    ConversionFailed,
    NotEnoughResources,
    OutputExists,
    UsageError,
    ZenError,
)
from zenconvert.write import naming, output

Cases = dict[str, Case]


# An output that is there already


def test_an_existing_output_is_replaced_only_with_force(case: Case, tmp_path: Path) -> None:
    case.write_old(tmp_path)
    with pytest.raises(OutputExists, match="--force"):
        case.write(tmp_path)
    assert everything(tmp_path) == case.old
    case.write(tmp_path, force=True)
    assert everything(tmp_path) == case.new
    assert names(tmp_path) == {Path(name).parts[0] for name in case.new}


def test_the_command_refuses_an_existing_output(cases: Cases, tmp_path: Path) -> None:
    cases["file"].write_old(tmp_path)
    command = cases["file"].command(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(tmp_path) == cases["file"].old


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a folder": lambda out: (fresh(out) / "cat.jpg").write_bytes(b"cat"),
    "a folder with some config.json": lambda out: (fresh(out) / "config.json").write_text("{}"),
    "an empty folder": fresh,
    "a fifo": os.mkfifo,
    "a link to a device": lambda out: out.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_force_does_not_replace_what_is_no_output(
    make: Callable[[Path], object], case: Case, tmp_path: Path
) -> None:
    out = tmp_path / sorted(case.new)[-1].split("/")[0]
    make(out)
    status, files = out.lstat(), everything(tmp_path)
    with pytest.raises(OutputExists):
        case.write(tmp_path, force=True)
    assert os.path.samestat(out.lstat(), status)
    assert everything(tmp_path) == files
    assert names(tmp_path) == {out.name}


def test_force_does_not_replace_a_file_with_a_folder(cases: Cases, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(OutputExists):
        cases["folder"].write(tmp_path, force=True)
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["file", "folder"])
def test_force_replaces_a_link_and_not_what_it_points_to(
    name: str, cases: Cases, tmp_path: Path
) -> None:
    case, real, place = cases[name], fresh(tmp_path / "real"), fresh(tmp_path / "place")
    case.write_old(real)
    (place / case.out).symlink_to(real / case.out)
    with pytest.raises(OutputExists):
        case.write(place)
    case.write(place, force=True)
    assert everything(real) == case.old
    assert not (place / case.out).is_symlink()
    assert everything(place) == case.new


@pytest.mark.parametrize("force", [False, True], ids=["fresh", "force"])
def test_an_output_that_appears_meanwhile_is_kept(force: bool, case: Case, tmp_path: Path) -> None:
    appearing = tmp_path / sorted(case.new)[-1].split("/")[0]

    def appear(stage: str, done: int, total: int) -> None:
        (fresh(appearing) / "mine").write_bytes(b"mine")

    with pytest.raises(OutputExists):
        case.write(tmp_path, stage=appear, force=force)
    assert (appearing / "mine").read_bytes() == b"mine"
    assert names(tmp_path) == {appearing.name}


def test_an_output_that_appears_at_the_last_moment_is_kept(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the check, while the files are getting their names."""
    appearing = tmp_path / min(case.new).split("/")[0]
    give_name = naming.give_name

    def late(path: Path, final: Path) -> None:
        if final == appearing:
            appearing.write_bytes(b"mine")
        give_name(path, final)

    monkeypatch.setattr(output, "give_name", late)
    with pytest.raises(OutputExists):
        case.write(tmp_path)
    assert appearing.read_bytes() == b"mine"
    assert names(tmp_path) == {appearing.name}


# Disks that are full or fail


@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize(
    ("function", "calls"), [("posix_fallocate", 0), ("pwrite", 0), ("pwrite", 5), ("fsync", 0)]
)
def test_a_full_disk(
    case: Case,
    function: str,
    calls: int,
    existing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if existing:
        case.write_old(tmp_path)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    after(monkeypatch, function, calls, fail(errno.ENOSPC))
    with pytest.raises(NotEnoughResources, match=case.out):
        case.write(tmp_path, force=existing)
    assert everything(tmp_path) == (case.old if existing else {})
    assert not any(name.startswith(".") for name in names(tmp_path))
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EIO, ConversionFailed),
        (errno.EDQUOT, NotEnoughResources),
        (errno.EMFILE, NotEnoughResources),
        (errno.EROFS, UsageError),
        (errno.EACCES, UsageError),
    ],
)
@pytest.mark.parametrize("function", ["mkdir", "open", "pwrite", "fsync"])
def test_what_the_system_refuses_is_an_error_of_ours(
    function: str,
    number: int,
    expected: type[ZenError],
    cases: Cases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after(monkeypatch, function, 0, fail(number))
    for case in cases.values():
        with pytest.raises(expected, match=os.strerror(number)):
            case.write(tmp_path)
    monkeypatch.undo()
    assert not names(tmp_path)


def test_too_little_space_is_found_before_anything_is_written(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed run has left does not count: it goes first."""
    size, usage = case.plan.output_bytes, shutil.disk_usage(tmp_path)
    left = tmp_path / f".{case.out}.partial" / "new"

    def free(_: Path) -> Any:
        return usage._replace(free=size - left.exists())

    monkeypatch.setattr(shutil, "disk_usage", free)
    open_scratch(left.parent)
    mark(left.parent)
    left.mkdir()
    case.write(tmp_path)
    assert everything(tmp_path) == case.new
    size -= 1
    after(monkeypatch, "posix_fallocate", 0, pytest.fail)
    with pytest.raises(NotEnoughResources, match=str(size + 1)):
        case.write(fresh(tmp_path / "other"))
    assert not names(tmp_path / "other")


def test_a_limit_of_the_system(cases: Cases, tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow."""
    done = subprocess.run(
        cases["file"].command(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert not names(tmp_path)


def test_short_reads_and_writes_are_continued(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may do less than it was asked for."""
    pread, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda f, b, at: pread(f, [b[0][: len(b[0]) // 2 + 1]], at))
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[: len(data) // 2 + 1], at))
    case.write(tmp_path)
    assert everything(tmp_path) == case.new


@pytest.mark.parametrize("replacing", [False, True], ids=["fresh", "replacing"])
def test_everything_is_on_the_disk_before_it_gets_its_name(
    case: Case, replacing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are the names when the run is done."""
    if replacing:
        case.write_old(tmp_path)
    synced, named = set(), set()
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def give(source: Path, final: Path, **given: Any) -> Any:
            if Path(final).parent == tmp_path:
                whole = [Path(source), *Path(source).rglob("*")]
                assert {path.stat().st_ino for path in whole} <= synced
                named.add(Path(final).name)
                synced.discard(tmp_path.stat().st_ino)
            return real(source, final, **given)

        return give

    monkeypatch.setattr(os, "fsync", sync)
    for module, function in ((os, "rename"), (os, "replace"), (os, "link"), (naming, "exchange")):
        monkeypatch.setattr(module, function, watched(getattr(module, function)))
    case.write(tmp_path, force=replacing)
    assert named == names(tmp_path)
    assert tmp_path.stat().st_ino in synced


# Two runs for one output


def test_two_runs_for_one_output(case: Case, tmp_path: Path) -> None:
    refusals = []

    def second(stage: str, done: int, total: int) -> None:
        before = everything(tmp_path).keys()
        with pytest.raises(UsageError, match="another run"):
            case.write_old(tmp_path, force=True)
        assert everything(tmp_path).keys() == before
        refusals.append(done)

    case.write(tmp_path, stage=second)
    assert refusals
    assert everything(tmp_path) == case.new


def test_a_run_that_ends_while_another_waits_for_its_lock(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was locked is not what stands there any more."""
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        for path in tmp_path.iterdir():
            path.rename(tmp_path / "gone")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="another run"):
        case.write(tmp_path)
    assert names(tmp_path) == {"gone"}


# Places where no output can be, and some where it can


@pytest.mark.parametrize("place", ["absent", "file", "y" * 300])
def test_folders_where_no_output_can_be(place: str, case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(UsageError):
        case.write(tmp_path / place)
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_bytes() == b"in the way"


@pytest.mark.parametrize("out", ["x" * 256, ".", "..", "/"])
@pytest.mark.parametrize("force", [False, True])
def test_names_that_no_output_can_have(
    out: str, force: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fresh(tmp_path / "here")
    monkeypatch.chdir(here)
    for target in ("gguf:f16", "hf:f16"):
        with pytest.raises(UsageError):
            convert(tiny, out, target, force=force)
    assert not names(here)
    assert names(tmp_path) == {"here"}


@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
def test_the_longest_name(target: str, tiny: Path, tmp_path: Path) -> None:
    name = "模" * 83 + ".gguf.f"  # 256 bytes
    with pytest.raises(UsageError):
        convert(tiny, tmp_path / name, target)
    convert(tiny, tmp_path / name[:-1], target)
    convert(tiny, tmp_path / name[:-1], target, force=True)
    assert names(tmp_path) == {name[:-1]}


@pytest.mark.parametrize("make", ["link", "file"])
def test_the_place_of_the_hidden_folder_is_taken(make: str, case: Case, tmp_path: Path) -> None:
    precious = fresh(tmp_path / "precious")
    (precious / "new").write_bytes(b"mine")
    hidden = tmp_path / f".{case.out}.partial"
    if make == "link":
        hidden.symlink_to(precious)
    else:
        hidden.write_bytes(b"mine")
    with pytest.raises((UsageError, OutputExists), match="partial"):
        case.write(tmp_path)
    assert names(tmp_path) == {"precious", hidden.name}
    assert names(precious) == {"new"}
