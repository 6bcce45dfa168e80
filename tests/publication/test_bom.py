"""The bill of materials against CycloneDX' own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.publication.conftest import Made
from zenconvert.publication.bom import bom_digests
from zenconvert.publication.evidence import shelf_evidence
from zenconvert.publication.facts import ReleaseFacts
from zenconvert.publication.release_report import cleaned
from zenconvert.verification.digests import read_digest

SHELVES = ["GGUF", "GPTQ-w4g128", "ONNX-int4"]


def read(folder: Path, shelf: str) -> dict[str, Any]:
    value = json.loads((folder / shelf / "bom.cdx.json").read_text())
    assert isinstance(value, dict)
    return value


def problem(text: str) -> object:
    from cyclonedx.schema import SchemaVersion  # which every process would load to collect tests
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


@pytest.mark.parametrize("shelf", SHELVES)
def test_it_obeys_the_official_schema(whole: Made, shelf: str) -> None:
    assert problem((whole[1] / shelf / "bom.cdx.json").read_text()) is None


def test_the_validator_would_complain(whole: Made) -> None:
    value = read(whole[1], "GGUF")
    value["components"][0]["modelCard"]["invented"] = True
    assert problem(json.dumps(value)) is not None


@pytest.mark.parametrize("shelf", SHELVES)
def test_it_names_every_weight_file_with_its_digest(whole: Made, shelf: str) -> None:
    facts, folder = whole
    told = bom_digests(read(folder, shelf))
    names = {n for v in facts.shelves[shelf] for n in v.files} - {"README.md"}
    assert told == {name: read_digest(folder / shelf / name) for name in names}


def test_it_says_what_it_came_from_and_what_was_measured(whole: Made) -> None:
    facts, folder = whole
    value = read(folder, "GGUF")
    model = value["components"][0]
    assert model["type"] == "machine-learning-model"
    ancestor = model["pedigree"]["ancestors"][0]
    assert ancestor["name"] == "zen-lab/zen-nano"
    report = facts.variants[0].report
    assert report is not None
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    found = {(m["type"].partition(",")[0], m["slice"]): m for m in metrics}
    arabic = found["mean KL divergence from the original", "ar"]
    drift = report.languages["ar"]
    assert float(arabic["value"]) == drift.kl_mean
    assert float(arabic["confidenceInterval"]["upperBound"]) == drift.intervals["kl.mean"][1]
    assert {m["slice"] for m in metrics} == {"all languages", "en", "ar"}
    data = [c for c in value["components"] if c["type"] == "data"]
    assert [d["bom-ref"] for d in data] == ["data:calibration", "data:evaluation"]
    held = {p["name"]: p["value"] for p in data[0]["data"][0]["contents"]["properties"]}
    assert held["tokens ar"] == "900"
    assert held["statistics sha256"] == "b" * 64
    assert "timestamp" not in json.dumps(value)


def test_hostile_names_stay_names(hostile: ReleaseFacts, whole: Made) -> None:
    told = cleaned(hostile)
    variants = told.shelves["GGUF"]
    digests = {name: "0" * 64 for v in variants for name in v.files}
    found = shelf_evidence(told, "GGUF", variants, digests, b"")
    assert problem(found["bom.cdx.json"].decode()) is None
    assert (
        json.loads(found["bom.cdx.json"])["serialNumber"] != read(whole[1], "GGUF")["serialNumber"]
    )
