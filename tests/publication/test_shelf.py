"""The evidence files of a release."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.publication.conftest import RECIPE, Made
from zenconvert.errors import (
    NotEnoughResources,
    OutputExists,
    ReportMismatch,
    SourceNotFound,
    UsageError,
)
from zenconvert.publication.evidence import assemble
from zenconvert.publication.facts import ReleaseFacts
from zenconvert.publication.files import write_file
from zenconvert.publication.lmstudio import model_yaml
from zenconvert.publication.names import repository_name

ROOT = {"SHA256SUMS", "policy.toml", "recipe.toml", "report.html", "report.json"}
SHELF = ROOT | {"README.md", "bom.cdx.json"}


def test_assembling_twice_gives_the_same_bytes(whole: Made, made: Made, tmp_path: Path) -> None:
    facts, first = whole
    second = tmp_path / "elsewhere"
    shutil.copytree(made[1], second)
    written = assemble(facts, second)
    assert written
    for path in written:
        name = path.relative_to(second)
        assert (first / name).read_bytes() == path.read_bytes(), name


def test_everything_that_belongs_there_is_there(whole: Made) -> None:
    facts, folder = whole
    assert {p.name for p in folder.iterdir() if p.is_file()} == ROOT
    for shelf, variants in facts.shelves.items():
        weights = {name for v in variants for name in v.files}
        more = {"Modelfile", "model.yaml"} if shelf == "GGUF" else set()
        assert {p.name for p in (folder / shelf).iterdir()} == weights | SHELF | more
    assert (folder / "recipe.toml").read_bytes() == RECIPE
    assert (folder / "GGUF" / "policy.toml").read_bytes() == facts.policy_file


def test_pages_show_verdicts_first(whole: Made) -> None:
    _, folder = whole
    root, shelf = ((folder / p).read_text() for p in ("report.html", "GPTQ-w4g128/report.html"))
    assert "4 variants of builtin:zen-nano" in root
    assert root.index("Verdicts") < root.index("Size against drift")
    for name in ("zen-nano-Q4_0.gguf", "zen-nano-Q8_0.gguf", "GPTQ-w4g128", "ONNX-int4"):
        assert name in root
    assert "<h1>GPTQ-w4g128</h1>" in shelf


def test_pages_show_what_could_not_be_made(whole: Made) -> None:
    facts, folder = whole
    [lost] = [variant for variant in facts.variants if variant.error is not None]
    page = (folder / "report.html").read_text()
    assert f"ERROR</b> {lost.name}</div>" in page
    assert "256 columns do not hold" in page
    assert str(folder.parent) not in page


def test_an_importance_matrix_is_taken_along(made: Made, tmp_path: Path) -> None:
    facts, weights = made
    folder = Path(shutil.copytree(weights, tmp_path / "release"))
    (folder / "GGUF" / "imatrix.gguf").write_bytes(b"GGUF")
    assemble(facts, folder)
    for name in ("README.md", "SHA256SUMS", "bom.cdx.json"):
        assert "imatrix.gguf" in (folder / "GGUF" / name).read_text()


def test_a_stale_signature_goes_and_a_good_one_stays(release: Made) -> None:
    facts, folder = release
    paths = [folder / "GGUF" / "model.sig", folder / "GPTQ-w4g128" / "model.sig"]
    for path in paths:
        path.write_text("signed")
    assemble(facts, folder)
    assert all(path.exists() for path in paths)
    first = replace(facts.variants[0], losses=("another word",))
    assemble(replace(facts, variants=(first, *facts.variants[1:])), folder)
    assert [path.exists() for path in paths] == [False, True]


def test_files_that_are_of_no_variant_are_refused(release: Made) -> None:
    facts, folder = release
    (folder / "GGUF" / "zen-nano-Q5_K_M.gguf").write_bytes(b"of an earlier recipe")
    with pytest.raises(OutputExists, match=r"zen-nano-Q5_K_M\.gguf"):
        assemble(facts, folder)


def test_files_that_are_not_there_are_named(release: Made) -> None:
    facts, folder = release
    (folder / "GPTQ-w4g128" / "model.safetensors").unlink()
    with pytest.raises(SourceNotFound, match=r"model\.safetensors"):
        assemble(facts, folder)


@pytest.mark.parametrize("name", ["../x.gguf", "/x.gguf", "a\nFROM b.gguf"])
def test_names_that_cannot_be_are_refused(release: Made, name: str) -> None:
    facts, folder = release
    first = replace(facts.variants[0], files=(name,))
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        assemble(replace(facts, variants=(first,)), folder)


def test_another_policy_than_was_judged_by_is_refused(release: Made) -> None:
    facts, folder = release
    with pytest.raises(ReportMismatch, match="policy"):
        assemble(replace(facts, policy_file=b"name = 'other'\n"), folder)


def test_small_files_are_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_file(path, b"first")
    before = path.stat().st_ino
    write_file(path, b"first")
    assert path.stat().st_ino == before

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NotEnoughResources, match="No space"):
        write_file(path, b"second")
    assert path.read_bytes() == b"first"


def test_lm_studio(made: Made) -> None:
    facts, _ = made
    variants = facts.shelves["GGUF"]
    value = yaml.safe_load(model_yaml(replace(facts, hub="Zen-Lab"), variants))
    assert value["model"] == "Zen-Lab/zen-nano"
    assert value["base"] == [
        {
            "key": "zen-lab/zen-nano-gguf",
            "sources": [{"type": "huggingface", "user": "Zen-Lab", "repo": "zen-nano-GGUF"}],
        }
    ]
    assert value["metadataOverrides"]["paramsStrings"] == ["9.71M"]
    assert value["metadataOverrides"]["contextLengths"] == [2048]
    assert value["metadataOverrides"]["minMemoryUsageBytes"] == variants[0].size
    assert yaml.safe_load(model_yaml(facts, variants))["base"] == [{"key": "local/zen-nano-gguf"}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("zen nano", "zen-nano-GGUF"), ("Zen..x--y", "Zen.x-y-GGUF"), ("ünï/x", "n-x-GGUF")],
)
def test_names_of_repositories(made: Made, name: str, expected: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    facts: ReleaseFacts = replace(made[0], name=name)
    assert repository_name(facts, "GGUF") == expected
    validate_repo_id(f"zen-lab/{expected}")


def test_names_too_long_for_a_repository_are_refused(made: Made) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a repository"):
        repository_name(replace(made[0], name="x" * 100), "GGUF")
