"""What SIGKILL leaves of a small file goes with the next run of this output, and nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.safety.outputs import names
from zenconvert.base.atomic import drop_stale, new_file
from zenconvert.base.processes import child_environment
from zenconvert.cli.outputs import append_side_file, write_side_file

KILLED: Final = """
import os, pathlib, signal, sys
from zenconvert.base.atomic import new_file
with new_file(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> Path:
    """What a killed run leaves of a file."""
    before = names(path.parent)
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, path], env=child_environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = names(path.parent) - before
    assert (path.parent / left).read_bytes() == b"half"
    return path.parent / left


@pytest.mark.parametrize(
    "name", ["page.html", "n" * 255, "模型" * 40, "a.0123456789abcdef.partial"]
)
@pytest.mark.parametrize("write", [write_side_file, append_side_file])
def test_the_next_run_removes_it(
    name: str, write: Callable[[Path, str], None], tmp_path: Path
) -> None:
    left, others = killed(tmp_path / name), killed(tmp_path / "another")
    write(tmp_path / name, "whole")
    assert not left.exists()
    assert others.exists()
    assert (tmp_path / name).read_text() == "whole"


def test_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    left = killed(tmp_path / "below" / "page")
    (tmp_path / "link").symlink_to(tmp_path / "below" / "page")
    write_side_file(tmp_path / "link", "whole")
    assert names(tmp_path / "below") == {"page"}
    assert not left.exists()


def test_what_is_not_ours_or_not_stale_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left = tmp_path / "page", killed(tmp_path / "page")
    data = left.read_bytes()

    def instead(make: Callable[[], object]) -> None:
        left.unlink()
        make()
        before = names(tmp_path)
        drop_stale(path)
        assert names(tmp_path) == before

    (tmp_path / ".page.0123456789abcdef.partial").write_text("somebody's")
    (tmp_path / ".page.partial").write_text("somebody's")
    instead(lambda: left.symlink_to(tmp_path / ".page.partial"))
    instead(lambda: os.mkfifo(left))
    instead(lambda: os.link(tmp_path / ".page.partial", left))
    left.unlink()
    with new_file(path) as file:  # another run, which is alive
        file.write(b"whole")
        before = names(tmp_path)
        drop_stale(path)
        assert names(tmp_path) == before
    assert path.read_bytes() == b"whole"
    left.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        drop_stale(path)
        assert left.exists()
    drop_stale(path)
    assert names(tmp_path) == {"page", ".page.partial", ".page.0123456789abcdef.partial"}


def test_taken_for_stale_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moments = fcntl.flock, iter(range(2))

    def flock(descriptor: int, how: int) -> None:
        for _ in moments:
            for name in names(tmp_path):
                (tmp_path / name).unlink()
            break
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_file(tmp_path / "page") as file:
        file.write(b"whole")
    assert names(tmp_path) == {"page"}
