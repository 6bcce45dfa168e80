"""What ``release.schema.json`` lets through as a place below a release's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenconvert.errors import CorruptFile
from zenconvert.publication.release_report import MAX_RECORD, read_record, whole_schema
from zenconvert.verification.report import compiled, problem_of

PLACES = [
    "", ".", "..", "..\n", "../x", "x/..", "x/../y", "/x", "x\0", "x\n", "\x1b[2Jx", "x\n/../y",
    "x\x7f",
]  # fmt: skip
SHELVES = [*PLACES, ".x", "...", ".zenconvert", "x/y", "..\\x", "C:x", "-x", "x y", "~x"]


@pytest.mark.parametrize(
    ("key", "value"), [*(("shelf", s) for s in SHELVES), *(("files", p) for p in PLACES)]
)
def test_places_that_no_release_has(key: str, value: str, tmp_path: Path) -> None:
    whole = whole_schema()
    part = {**whole["$defs"]["variant"]["properties"][key], "$defs": whole["$defs"]}
    check = compiled(part)
    assert problem_of(check, [value] if key == "files" else value)
    for good in ("GGUF", "GPTQ-w4g128", "a.b_c"):
        assert problem_of(check, [f"{good}/x y.bin"] if key == "files" else good) is None


def test_a_record_beyond_all_releases(tmp_path: Path) -> None:
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(MAX_RECORD + 1)
    with pytest.raises(CorruptFile, match="at most"):
        read_record(tmp_path / "report.json")
