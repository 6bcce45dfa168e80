"""Side files on disks that are full, fail or are read-only at the end of long work: one error with
its exit code, no half file, and everything else that was measured is printed and written."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended, ended
from tests.fuzz import reports
from tests.safety.outputs import everything, fail, names
from zenconvert import conversion
from zenconvert.base import atomic
from zenconvert.base.places import check_side_file
from zenconvert.errors import UsageError
from zenconvert.publication import release_run
from zenconvert.publication.facts import ReleaseFacts, SourceFacts
from zenconvert.verification.report import Report

__all__ = ["ended"]

POLICY = 'name = "p"\nmin_tokens = 1\nmin_blocks = 1\n[tier.any]\nbits = [1, 32]\n'
FAULTS: dict[str, tuple[str, int, int]] = {
    "a full disk": ("write", errno.ENOSPC, 5),
    "a limit of the size of files": ("write", errno.EFBIG, 5),
    "a failing disk": ("write", errno.EIO, 1),
    "a failing disk at the end": ("fsync", errno.EIO, 1),
    "a read-only disk": ("open", errno.EROFS, 2),
    "too many open files": ("open", errno.EMFILE, 5),
}


def break_disk(
    monkeypatch: pytest.MonkeyPatch, function: str, number: int, name: str | None
) -> None:
    """Let a call fail for a file (all files where there is no name) under its temporary name."""
    real_open, real_write, real_fsync = os.open, os.write, os.fsync
    raw_write = atomic._Raw.write
    broken: set[int] = set()

    def hit(path: object) -> bool:
        base = Path(str(path)).name
        return (base in WRITTEN and name in {None, base}) or any(
            base.startswith(f".{one}.") for one in ([name] if name else WRITTEN)
        )

    def opening(path: Any, flags: int, *more: Any, **given: Any) -> int:
        ours = flags & (os.O_WRONLY | os.O_RDWR) and hit(path)
        if ours and function == "open":
            fail(number)()
        descriptor = real_open(path, flags, *more, **given)
        broken.discard(descriptor)
        if ours:
            broken.add(descriptor)
        return descriptor

    def writing(descriptor: int, data: bytes) -> int:
        if descriptor in broken and function == "write":
            fail(number)()
        return real_write(descriptor, data)

    def raw(self: Any, data: Any, /) -> int:
        if self.fileno() in broken and function == "write":
            io.FileIO.write(self, bytes(data)[:3])  # some of it
            with atomic.system_errors(self.out):
                fail(number)()
        return raw_write(self, data)

    def syncing(descriptor: int) -> None:
        if descriptor in broken and function == "fsync":
            fail(number)()
        real_fsync(descriptor)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "write", writing)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(atomic._Raw, "write", raw)


WRITTEN = ("json", "html", "summary")


@pytest.mark.parametrize(("function", "number", "code"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("name", [*WRITTEN, None])
def test_what_was_measured_is_not_lost(
    function: str,
    number: int,
    code: int,
    name: str | None,
    tiny: Path,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = reports.report(tiny)
    (tmp_path / "summary").write_text("before\n")
    (tmp_path / "json").write_text("old")
    before = everything(tmp_path)
    options = [word for one in WRITTEN for word in (f"--{one}", tmp_path / one)]
    with monkeypatch.context() as patch:

        def measured(*given: object, **more: object) -> Report:
            break_disk(patch, function, number, name)
            return report

        patch.setattr("zenconvert.verification.measurement.verify", measured)
        found, out, err = ended("verify", tiny, tiny, *options)
    assert found == code, err
    assert err.count("error:") == 1
    assert str(tmp_path / (name or "json")) in err
    assert "Traceback" not in err
    assert "worst language" in out
    after = everything(tmp_path)
    failed = {name} if name else set(WRITTEN)
    assert {one: after.get(one) for one in failed} == {one: before.get(one) for one in failed}
    assert all(after[one] != before.get(one) for one in set(WRITTEN) - failed)
    assert names(tmp_path) <= {*WRITTEN}


@pytest.mark.parametrize(("function", "number", "code"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("command", ["gate", "compare"])
def test_pages_of_a_report(
    command: str,
    function: str,
    number: int,
    code: int,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zenconvert.verification.gate.check_files", lambda *_, **more: ())
    (tmp_path / "r").write_bytes(reports.report_bytes())
    with monkeypatch.context() as patch:
        break_disk(patch, function, number, None)
        found, _, err = ended(command, tmp_path / "r", "--html", tmp_path / "html")
    assert found == code, err
    assert err.count("error:") == 1
    assert names(tmp_path) == {"r"}


@pytest.mark.parametrize(("function", "number", "code"), FAULTS.values(), ids=FAULTS)
def test_a_report_of_a_conversion(
    function: str,
    number: int,
    code: int,
    tiny: Path,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is there, and said to be."""
    real, out = conversion.convert, tmp_path / "out.gguf"
    with monkeypatch.context() as patch:

        def convert(*given: Any, **more: Any) -> Any:
            result = real(*given, **more)
            break_disk(patch, function, number, "json")
            return result

        patch.setattr(conversion, "convert", convert)
        words = ("--to", "gguf:f16", "--report", tmp_path / "json")
        found, said, err = ended("convert", tiny, out, *words)
    assert found == code, err
    assert said.strip() == str(out)
    assert err.count("error:") == 1
    assert f"{tmp_path / 'json'}: cannot be written" in err
    assert names(tmp_path) == {"out.gguf"}


@pytest.mark.parametrize(("function", "number", "code"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("more", [(), ("--json",)], ids=" ".join)
def test_a_summary_of_a_release(
    more: tuple[str, ...],
    function: str,
    number: int,
    code: int,
    tiny: Path,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"[source]\npath = {str(tiny)!r}\n[output]\nfolder = 'out'\n"
        "[[variant]]\ntarget = 'gguf:f16'\n"
    )
    source = SourceFacts(
        str(tiny), None, "0", "n", None, None, (), (), "llama", "llama", 1, 1, None
    )
    facts = ReleaseFacts("n", source, None, "p", "0", b"", "0", ())
    result = release_run.ReleaseResult(tmp_path / "out", facts, {}, ())
    with monkeypatch.context() as patch:

        def release(*given: Any, **more: Any) -> release_run.ReleaseResult:
            break_disk(patch, function, number, "summary")
            return result

        patch.setattr(release_run, "release", release)
        found, said, err = ended("release", recipe, "--summary", tmp_path / "summary", *more)
    assert found == code, err
    assert str(tmp_path / "out") in said
    assert err.count("error:") == 1
    assert names(tmp_path) == {"recipe.toml"}


@pytest.mark.parametrize(
    ("function", "number", "code"), [fault for fault in FAULTS.values() if fault[0] == "open"]
)
def test_a_disk_that_is_broken_from_the_start(
    function: str,
    number: int,
    code: int,
    tiny: Path,
    tmp_path: Path,
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is computed for a file that cannot even be made."""
    out = tmp_path / "out"
    commands = (
        ("verify", tiny, tiny, "--json"), ("verify", tiny, tiny, "--html"),
        ("verify", tiny, tiny, "--summary"), ("calibrate", tiny, out, "--imatrix"),
        ("convert", tiny, out, "--to", "hf:f16", "--report"),
    )  # fmt: skip
    break_disk(monkeypatch, function, number, None)
    for command in commands:
        path = tmp_path / ("summary" if command[-1] == "--summary" else "json")
        found, said, err = ended(*command, path)
        assert found == code, (command, err)
        assert f"{path}: cannot be written" in err
        assert not said
        assert not names(tmp_path)


def test_a_summary_that_cannot_be_written_to_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary"
    path.write_text("before")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != path and real(p, mode))
    check_side_file("--json", path)  # which takes its place
    with pytest.raises(UsageError, match=r"--summary .*cannot be written to"):
        check_side_file("--summary", path, appended=True)
