"""``report.json`` of a release: its schema, and nothing of the machine in it."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.publication.conftest import Made
from zenconvert.errors import CorruptFile
from zenconvert.publication.release_report import (
    SCHEMA,
    cleaned,
    read_record,
    record,
    variants_of,
    without_places,
)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("place", [".", "GGUF", "GPTQ-w4g128"])
def test_it_obeys_its_schema_and_comes_back(whole: Made, place: str) -> None:
    facts, folder = whole
    value = read_record(folder / place / "report.json")
    told = cleaned(facts)
    variants = told.variants if place == "." else told.shelves[place]
    back = variants_of(value, "here")
    assert [v.name for v in back] == [v.name for v in variants]
    assert record(told, back) == value
    assert back[0].report == variants[0].report
    assert back[0].verdict == variants[0].verdict


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("variants",), []),
        (("variants", 0, "outcome"), "GREAT"),
        (("variants", 0, "files"), ["../x"]),
        (("variants", 0, "files"), ["/etc/passwd"]),
        (("variants", 0, "shelf"), "a/b"),
        (("variants", 0, "report", "candidate", "sha256"), "short"),
        (("variants", 0, "report", "overall", "tokens"), "many"),
        (("variants", 0, "verdict", "outcome"), "FINE"),
        (("calibration", "tokens", "en"), -1),
        (("invented",), 1),
    ],
)
def test_what_breaks_the_schema_is_named(
    whole: Made, tmp_path: Path, path: tuple[str | int, ...], value: object
) -> None:
    record_ = json.loads((whole[1] / "report.json").read_text())
    inner: Any = record_
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(record_))
    with pytest.raises(CorruptFile, match=r"release\.schema\.json"):
        read_record(tmp_path / "report.json")


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(CorruptFile, match="cannot be read"):
        read_record(tmp_path / "report.json")
    with pytest.raises(CorruptFile, match="cannot be read"):
        read_record(tmp_path / "absent.json")


def test_nothing_of_the_machine_is_in_the_evidence(made: Made, whole: Made) -> None:
    facts, weights = made
    assert facts.variants[0].report is not None
    assert facts.variants[0].report.candidate.path.startswith("/")
    banned = [str(weights.parent), str(whole[1]), str(Path.home()) + os.sep, socket.gethostname()]
    evidence = [p for p in whole[1].rglob("*") if p.suffix in {".json", ".html", ".md", ".yaml"}]
    assert len(evidence) > 12
    for path in [*evidence, whole[1] / "GGUF" / "Modelfile"]:
        text = path.read_text()
        for word in banned:
            assert word not in text, f"{path.name}: {word}"


def test_artifacts_are_named_below_the_release(whole: Made) -> None:
    value = read_record(whole[1] / "report.json")
    names = [v["report"]["candidate"]["path"] for v in value["variants"] if v["report"]]
    assert names == [
        "GGUF/zen-nano-Q4_0.gguf", "GGUF/zen-nano-Q8_0.gguf", "GPTQ-w4g128", "ONNX-int4"
    ]  # fmt: skip
    assert value["variants"][4]["error"] == "zen-nano-Q2_K.gguf: 256 columns do not hold"
    assert value["variants"][0]["report"]["text"]["source"] == "text.jsonl"
    assert value["policy"]["name"] == "policy.toml"


def test_a_folder_on_this_machine_is_named_by_the_model(made: Made) -> None:
    facts, _ = made
    told = cleaned(replace(facts, source=replace(facts.source, path="/home/me/models/zen")))
    assert told.source.path == "zen-nano"
    assert told.variants[0].report is not None
    assert told.variants[0].report.reference.path == "zen-nano"
    hub = replace(facts.source, path="zen-lab/zen", revision="c" * 40)
    assert cleaned(replace(facts, source=hub)).source.path == "zen-lab/zen"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a b", "a b"),
        ("/home/me/x.gguf: broken", "x.gguf: broken"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("text/plain and and/or", "text/plain and and/or"),
        ("'/opt/lib/libx.so' is there", "'libx.so' is there"),
        ("~/models/zen/config.json", "config.json"),
        ("organisation/name@abc", "organisation/name@abc"),
        ("3 / 4 = 0.75", "3 / 4 = 0.75"),
    ],
)
def test_places_are_cut_out_of_messages(text: str, expected: str) -> None:
    assert without_places(text) == expected
