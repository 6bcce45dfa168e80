"""A file that cannot be read is told by its name, as an input: never as an output, never raw."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.safety.outputs import after, everything, fail, fresh, names
from zenconvert import calibrate, convert, verify
from zenconvert.base.atomic import append_whole
from zenconvert.base.processes import module_command
from zenconvert.base.scratch import held_scratch, open_scratch
from zenconvert.errors import NotEnoughResources, SourceNotFound, ZenError
from zenconvert.opening.sources import open_checkpoint
from zenconvert.verification.facts import facts_of


class Failing(io.FileIO):
    """A file on a disk that fails: it can be opened, and that is all."""

    def _fail(self, *_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    read = readinto = readall = _fail


@pytest.fixture(params=[errno.EACCES, errno.EIO], ids=["forbidden", "failing"])
def spoil(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Lets a file fail as the system would, whoever reads it and whatever his rights are."""
    number = request.param

    def spoil(target: Path) -> None:
        real_open, real_os_open, held = io.open, os.open, os.path.samefile

        def is_target(name: Any) -> bool:
            return (
                isinstance(name, str | os.PathLike) and Path(name).exists() and held(name, target)
            )

        def refuse(name: Any) -> None:
            if number == errno.EACCES and is_target(name):
                raise PermissionError(number, os.strerror(number), str(name))

        def opened(name: Any, mode: str = "r", *more: Any, **given: Any) -> Any:
            refuse(name)
            if "r" in mode and is_target(name):
                raw = io.BufferedReader(Failing(real_os_open(name, os.O_RDONLY), "r"))
                return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8")
            return real_open(name, mode, *more, **given)

        def os_opened(name: Any, *more: Any, **given: Any) -> int:
            refuse(name)
            return real_os_open(name, *more, **given)

        def unread(real: Callable[..., Any]) -> Callable[..., Any]:
            def read(descriptor: int, *more: Any) -> Any:
                if is_target(f"/proc/self/fd/{descriptor}"):
                    raise OSError(number, os.strerror(number))
                return real(descriptor, *more)

            return read

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr("builtins.open", opened)
        monkeypatch.setattr(os, "open", os_opened)
        for function in ("read", "pread", "preadv"):
            monkeypatch.setattr(os, function, unread(getattr(os, function)))

    return spoil


TARGETS = {"source": "hf:f16", "gguf": "gguf:f16", "onnx": "onnx:f32"}
NEEDED = [
    ("source", "config.json"), ("source", "model.safetensors"), ("source", "tokenizer.json"),
    ("source", "LICENSE"), ("source", "generation_config.json"), ("source", "README.md"),
    ("gguf", "out.gguf"), ("onnx", "out/config.json"), ("onnx", "out/tokenizer.json"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), NEEDED)
def test_the_input_is_named_and_nothing_is_written(
    kind: str, name: str, source: Path, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    (source / "LICENSE").write_text("Apache")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (source / "generation_config.json").write_text('{"top_k": 20}')
    made = fresh(tmp_path / "made")
    path = {"source": source, "gguf": made / "out.gguf", "onnx": made / "out"}[kind]
    if kind != "source":
        convert(source, path, TARGETS[kind])
    file = (source if kind == "source" else made) / name
    place = fresh(tmp_path / "place")
    convert(source, place / "out", "hf:bf16")
    before = everything(place)
    spoil(file)
    for out, force in ((place / "new", False), (place / "out", True)):
        with pytest.raises(ZenError) as caught:
            convert(path, out, "hf:f32", force=force)
        assert str(file) in str(caught.value)
        assert "cannot be written" not in str(caught.value)
    assert everything(place) == before
    assert names(place) == {"out"}


def test_a_report_names_what_it_cannot_read(source: Path, spoil: Callable[[Path], Any]) -> None:
    (source / "LICENSE").write_text("Apache")
    checkpoint = open_checkpoint(source)
    spoil(source / "LICENSE")
    with pytest.raises(SourceNotFound, match="LICENSE: cannot be read"):
        facts_of(checkpoint)


def test_side_files_are_read_before_anything_is_measured(
    source: Path, spoil: Callable[[Path], Any]
) -> None:
    (source / "LICENSE").write_text("Apache")
    spoil(source / "LICENSE")
    with pytest.raises(SourceNotFound, match="LICENSE: cannot be read"):
        verify(source, source, context=16, progress=lambda *_: pytest.fail("work was begun"))


def test_folders_that_cannot_be_searched(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(name: Any, *more: Any, **given: Any) -> os.stat_result:
        if Path(os.fsdecode(name)).parent == source:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return real(name, *more, **given)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(SourceNotFound, match=r"cannot be read: Permission denied"):
        open_checkpoint(source)


# What is written beside the output


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_summary_is_not_begun_on_a_full_disk(
    function: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.md"
    old.write_text("before\n")
    after(monkeypatch, function, 0, fail(number))
    for path in (old, tmp_path / "new.md") if function == "fsync" else (old,):
        with pytest.raises(ZenError, match=path.name):
            append_whole(path, "more\n")
    assert names(tmp_path) == {"old.md"}
    assert old.read_text() == "before\n"


@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_folder_to_work_in_that_cannot_be_marked_is_not_left(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after(patch, function, 0, fail(errno.ENOSPC))
        with pytest.raises(NotEnoughResources), held_scratch(tmp_path / ".out.solving"):
            pytest.fail("there is no room to work in")
    assert not names(tmp_path)
    open_scratch(tmp_path / ".out.solving")  # and the next run may


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_while_what_was_worked_with_is_removed(
    number: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours, or the statistics; and the next run goes on."""

    def refuse(*_: Any, **more: Any) -> None:
        raise OSError(number, os.strerror(number))

    torch.set_num_threads(1)
    few: dict[str, Any] = {"languages": ["en"], "tokens_per_language": 64, "context": 32}
    place = fresh(tmp_path / "place")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with suppress(ZenError):
            calibrate(tiny, place / "out.stats", **few)
    if not (place / "out.stats").exists():
        calibrate(tiny, place / "out.stats", **few)
    calibrate(tiny, tmp_path / "out.stats", **few)
    assert (place / "out.stats").read_bytes() == (tmp_path / "out.stats").read_bytes()


@pytest.mark.parametrize("limit", [0, 4096, 9000])
def test_statistics_beyond_a_limit_of_the_system(limit: int, tiny: Path, tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow: nothing stands there, nothing is left."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat.\n" * 8)
    command = module_command(
        "zenconvert", "calibrate", str(tiny), str(tmp_path / "out.stats"), "--samples",
        str(tmp_path / "text.txt"), "--context", "16",
    )  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert ("out.stats" if limit else "TMPDIR") in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {"text.txt"}
