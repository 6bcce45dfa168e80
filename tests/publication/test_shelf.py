"""The evidence files of a release."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.publication.conftest import Made
from zenconvert.publication.shelf import assemble


def test_assembling_twice_gives_the_same_bytes(whole: Made, made: Made, tmp_path: Path) -> None:
    facts, first = whole
    second = tmp_path / "elsewhere"
    shutil.copytree(made[1], second)
    written = assemble(facts, second)
    assert written
    for path in written:
        name = path.relative_to(second)
        assert (first / name).read_bytes() == path.read_bytes(), name
