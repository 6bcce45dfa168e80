"""Records of a release's jobs that no job wrote: nothing outside of the release is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.safety.outputs import everything
from zenconvert.publication.ledger import Ledger

KEY = "a" * 40
WRITTEN = {"path": "GGUF/x.gguf", "size": 4, "sha256": "0" * 64}
RECORD: dict[str, Any] = {
    "key": KEY, "kind": "variant", "name": "x", "outputs": [WRITTEN], "read": "", "scratch": {},
    "facts": {"exact": True, "losses": []},
}  # fmt: skip
PLACES = (
    "../precious",
    "/etc/passwd",
    "",
    ".",
    "x/../../precious",
    "a\0b",
    "x" * 300,
    7,
    None,
    ["x"],
)
FORGED: dict[str, dict[str, Any]] = {
    **{f"output {p!r}": {"outputs": [{**WRITTEN, "path": p}]} for p in PLACES},
    **{f"scratch {p!r}": {"scratch": {p: 4}} for p in PLACES if isinstance(p, str)},
    "a size": {"outputs": [{**WRITTEN, "size": "4"}]},
    "a size of scratch": {"scratch": {"x": "4"}},
    "scratch": {"scratch": ["x"]},
    "facts": {"facts": ["x"]},
    "losses": {"facts": {"losses": 5}},
    "half of the facts": {"kind": "gather", "facts": {"calibration": "x"}},
    "tokens": {"kind": "gather", "facts": {"calibration": "x", "tokens": 5}},
    "engines": {"facts": {"failed_engines": "x"}},
    "a name": {"name": "../../precious"},
    "a name of another type": {"name": 5},
    "a kind": {"kind": []},
    "outputs": {"outputs": {"path": 1}},
    "more": {"more": 1},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_what_no_job_would_write_says_nothing(change: dict[str, Any], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.state.mkdir()
    file = ledger.state / f"{KEY}.json"
    file.write_text(json.dumps(RECORD))
    assert ledger.get(KEY) is not None
    file.write_text(json.dumps({**RECORD, **change}))
    assert ledger.get(KEY) is None
    assert list(ledger.all()) == []
    assert ledger.gathered("x") is None


def test_what_a_record_names_is_removed_only_in_the_release(tmp_path: Path) -> None:
    folder, precious = tmp_path / "release", tmp_path / "precious"
    for path in (precious / "x.gguf", folder / "GGUF" / "x.gguf", folder / "folder" / "y"):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    (folder / "linked").symlink_to(precious)
    (folder / "GGUF" / "link").symlink_to(precious / "x.gguf")
    ledger, before = Ledger(folder), everything(precious)
    for name in ("linked/x.gguf", "../precious/x.gguf", "folder", "GGUF/link", "GGUF/x.gguf", "no"):
        ledger.discard(name)
    assert everything(precious) == before
    assert sorted(p.name for p in folder.rglob("*")) == ["GGUF", "folder", "linked", "y"]
