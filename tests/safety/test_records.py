"""What ``release.schema.json`` lets through as a place below a release's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from zenconvert.errors import CorruptFile
from zenconvert.publication import release_report
from zenconvert.publication.release_report import MAX_RECORD, read_record

PLACES = [
    "", ".", "..", "..\n", "../x", "x/..", "x/../y", "/x", "x\0", "x\n", "\x1b[2Jx", "x\n/../y",
    "x\x7f",
]  # fmt: skip
SHELVES = [*PLACES, ".x", "...", ".zenconvert", "x/y", "..\\x", "C:x", "-x", "x y", "~x"]


@pytest.mark.parametrize(
    ("key", "value"), [*(("shelf", s) for s in SHELVES), *(("files", p) for p in PLACES)]
)
def test_places_that_no_release_has(key: str, value: str, tmp_path: Path) -> None:
    [schema] = [release_report._validator().schema["properties"]["variants"]["items"]]
    part = schema["properties"][key]
    checker = release_report._validator().evolve(schema=part)
    assert not checker.is_valid([value] if key == "files" else value)
    for good in ("GGUF", "GPTQ-w4g128", "a.b_c"):
        assert checker.is_valid([f"{good}/x y.bin"] if key == "files" else good)


def test_a_record_beyond_all_releases(tmp_path: Path) -> None:
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(MAX_RECORD + 1)
    with pytest.raises(CorruptFile, match="at most"):
        read_record(tmp_path / "report.json")
