"""Folders to work in are touched only if a run made them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.safety.outputs import everything
from zenconvert import calibrate, convert
from zenconvert.base.atomic import hidden_name
from zenconvert.base.scratch import (
    held_scratch,
    is_kept,
    keep,
    mark,
    open_scratch,
    remove_scratch,
    sum_of,
)
from zenconvert.errors import UsageError, ZenError
from zenconvert.publication.graph import held
from zenconvert.solve.calibration_texts import Calibrating

FEW = Calibrating(languages=("en",), tokens_per_language=64, context=32)


def _precious(place: Path) -> Path:
    precious = place / "precious"
    (precious / "new").mkdir(parents=True)
    (precious / "new" / "file").write_bytes(b"mine")
    (precious / "lock").write_bytes(b"")
    (precious / "run.json").write_bytes(b"{}")
    return precious


def _folder(path: Path) -> None:
    _precious(path.parent).rename(path)


def _link(path: Path) -> None:
    path.symlink_to(_precious(path.parent))


def _linked_mark(path: Path) -> None:
    """A mark that is a link to a real one."""
    precious, real = _precious(path.parent), path.parent / "real"
    open_scratch(real)
    mark(real)
    (found,) = real.iterdir()
    (precious / found.name).symlink_to(found)
    precious.rename(path)


def _wrong_mark(path: Path) -> None:
    (_precious(path.parent) / f"zenconvert-{'0' * 32}").write_text("1" * 32)
    (path.parent / "precious").rename(path)


def _file(path: Path) -> None:
    path.write_bytes(b"mine")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a link": _link,
    "a folder with a linked mark": _linked_mark,
    "a folder with a wrong mark": _wrong_mark,
    "a file": _file,
    "a fifo": _fifo,
}
WORK: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "a file": (".out.partial", lambda source, out: convert(source, out, "gguf:f16")),
    "a folder": (".out.partial", lambda source, out: convert(source, out, "hf:f16")),
    "forced": (".out.partial", lambda source, out: convert(source, out, "hf:f16", force=True)),
    "solved": (
        ".out.solving",
        lambda source, out: convert(source, out, "gptq:w4g64", calibrating=FEW),
    ),
    "weighed": (
        ".out.gathered",
        lambda source, out: convert(source, out, "gguf:q4_k_m", calibrating=FEW),
    ),
    "statistics": (
        ".out.partial",
        lambda source, out: calibrate(
            source, out, languages=["en"], tokens_per_language=64, context=32
        ),
    ),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(("name", "work"), WORK.values(), ids=WORK)
def test_what_is_not_ours_is_refused_by_name(
    name: str,
    work: Callable[[Path, Path], object],
    make: Callable[[Path], None],
    tiny: Path,
    tmp_path: Path,
) -> None:
    make(tmp_path / name)
    before, status = everything(tmp_path), (tmp_path / name).lstat()
    with pytest.raises(UsageError, match=name):
        work(tiny, tmp_path / "out")
    assert everything(tmp_path) == before
    assert os.path.samestat((tmp_path / name).lstat(), status)


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_the_state_of_a_release_is_not_anybodys_folder(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / ".zenconvert")
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=r"\.zenconvert"), held(tmp_path):
        pass
    assert everything(tmp_path) == before


def test_an_empty_folder_is_taken_and_a_marked_one_is_reopened(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with held_scratch(folder):
        (folder / "x").write_bytes(b"1")
        with pytest.raises(UsageError, match="another run"), held_scratch(folder):
            pass
    with held_scratch(folder):
        assert (folder / "x").is_file()
    remove_scratch(folder)
    assert not folder.exists()


@pytest.mark.parametrize("kept", [0, 7, 32])
@pytest.mark.parametrize("zeros", [0, 32])
def test_a_mark_that_a_kill_or_a_crash_has_cut(kept: int, zeros: int, tmp_path: Path) -> None:
    found = _marked(tmp_path / "work")
    found.write_bytes(found.read_bytes()[:kept] + bytes(zeros))
    open_scratch(tmp_path / "work")
    remove_scratch(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_damaged_mark_is_told_with_what_to_do(tmp_path: Path) -> None:
    found = _marked(tmp_path / "work")
    found.write_bytes(b"!" * 32)
    with pytest.raises(UsageError, match=rf"{found.name} is damaged: .* Remove the folder, or"):
        open_scratch(tmp_path / "work")
    remove_scratch(tmp_path / "work")
    assert (tmp_path / "work" / "run.json").is_file()
    found.write_text(found.name.partition("-")[2])
    open_scratch(tmp_path / "work")


def _marked(folder: Path) -> Path:
    """The mark of a folder that a run has worked in."""
    open_scratch(folder)
    mark(folder)
    (found,) = folder.iterdir()
    (folder / "run.json").write_bytes(b"{}")
    return found


def test_only_what_is_of_use_stays_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "work"

    def fail(*, useful: bool) -> None:
        with held_scratch(folder):
            (folder / "x").write_bytes(b"1")
            if useful:
                keep(folder / "x")
            raise ZenError

    with pytest.raises(ZenError):
        fail(useful=False)
    assert not folder.exists()
    with pytest.raises(ZenError) as caught:
        fail(useful=True)
    assert str(folder) in caught.value.__notes__[0]
    assert is_kept(folder / "x")


@pytest.mark.parametrize("damage", [b"", b"\0" * 5, b"12346", b"123456"])
def test_a_damaged_file_is_not_kept(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert not is_kept(path)
    keep(path)
    assert is_kept(path)
    path.write_bytes(damage)
    assert not is_kept(path)
    path.write_bytes(b"12345")
    assert is_kept(path)
    sum_of(path).write_bytes(damage)
    assert not is_kept(path)


def test_long_names_are_digested() -> None:
    assert hidden_name("x", "partial") == ".x.partial"
    assert len(hidden_name("x" * 250, "partial")) < 60
