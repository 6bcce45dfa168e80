"""A folder that a run works in goes while it runs, or cannot be written: one error of ours."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.safety.outputs import after, fail, names
from tests.safety.test_scratch import WORK
from zenconvert.calib import statistics_file, workspace
from zenconvert.errors import ConversionFailed, NotEnoughResources, UsageError, ZenError
from zenconvert.reference.hidden import HiddenStates

MOMENTS = {"solved": (4,), "weighed": (4,)}
"""After how many files brought to the disk, for what takes seconds; else after each of them."""


@pytest.mark.parametrize("kind", WORK)
def test_a_folder_that_goes_while_a_run_works_in_it(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    hasty = partial(workspace.open_workspace, save_seconds=0)
    for module in (workspace, statistics_file):
        monkeypatch.setattr(module, "open_workspace", hasty)
    monkeypatch.setattr(statistics_file, "SAVE_SECONDS", 0)
    name, work = WORK[kind]
    refused = 0
    for number in MOMENTS.get(kind, range(20)):
        place = tmp_path / str(number)
        place.mkdir()
        gone: list[Path] = []
        with monkeypatch.context() as patch:
            after(patch, "fsync", number, partial(_remove, place / name, gone))
            told = _error(work, tiny, place / "out")
        if not gone:
            assert not told
            break
        assert not told or str(place) in told
        assert names(place) == (set() if told else {"out"})
        refused += bool(told)
    assert refused


def _remove(folder: Path, gone: list[Path]) -> None:
    """Remove a folder once; later ones of that name stay."""
    if folder.is_dir() and not gone:
        gone.append(folder)
        shutil.rmtree(folder)


def _error(work: Callable[[Path, Path], object], source: Path, out: Path) -> str:
    """What a run says that fails; any other error than ours comes through."""
    try:
        work(source, out)
    except ZenError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.ENOSPC, NotEnoughResources, "no room for hidden states of 64 bytes"),
        (errno.EDQUOT, NotEnoughResources, "no room for hidden states of 64 bytes"),
        (errno.EROFS, UsageError, "cannot be written: Read-only file system"),
        (errno.EIO, ConversionFailed, "cannot be written: Input/output error"),
    ],
)
def test_why_hidden_states_have_no_file(
    number: int,
    kind: type[ZenError],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: fail(number)())
    with pytest.raises(kind, match=told):
        HiddenStates(4, 4, torch.float32, device="cpu", place="disk", folder=tmp_path)
    assert names(tmp_path) == set()
