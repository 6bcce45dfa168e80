"""The recipes and workflows of the repository: they are read, and their commands exist."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from zenconvert.cli import cli
from zenconvert.formats.registry import FORMATS
from zenconvert.publication import recipe_reader

ROOT = Path(__file__).parent.parent
RECIPES = [*sorted((ROOT / "docs/recipes").glob("*.toml")), ROOT / "scripts/demo.toml"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_no_mistakes(path: Path) -> None:
    recipe, problems = recipe_reader.read(path)
    assert problems == []
    assert len(recipe.variants) >= 5


def test_the_demonstration_covers_every_format() -> None:
    recipe, _ = recipe_reader.read(ROOT / "scripts/demo.toml")
    assert len(recipe.variants) >= 8
    # its minutes are few, and the codes of compressed-tensors are those of GPTQ
    assert {variant.target.format for variant in recipe.variants} == set(FORMATS) - {"ct"}


def workflow(path: Path) -> dict[str, Any]:
    """The table of a workflow."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def commands(path: Path) -> list[list[str]]:
    """The words of every ``zenconvert`` command of a workflow, its variables replaced."""
    table = workflow(path)
    found = []
    for job in table["jobs"].values():
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                for name, value in table.get("env", {}).items():
                    line = line.replace(f"${name}", value)
                words = shlex.split(line)
                if words[:1] == ["zenconvert"]:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(path: Path) -> None:
    for words in commands(path):
        assert words[0] == "release"
        verifies = words[1] == "verify"
        name = "verify" if verifies else "run"
        listed = CliRunner().invoke(cli, ["release", name, "--help"]).output
        assert [w for w in words if w.startswith("--") and w not in listed] == []
        if not verifies:
            recipe, _ = recipe_reader.read(ROOT / words[1])
            assert recipe.output.folder.name == workflow(path)["env"]["RELEASE"]


def test_a_tag_publishes_and_a_pull_request_does_not() -> None:
    publish, gate = (ROOT / f".github/workflows/{name}.yml" for name in ("publish", "gate"))
    assert any("--publish" in words for words in commands(publish))
    assert not any("--publish" in words for words in commands(gate))
    for path in (publish, gate):
        assert any("$GITHUB_STEP_SUMMARY" in words for words in commands(path))
        steps = next(iter(workflow(path)["jobs"].values()))["steps"]
        kept = [s for s in steps if "upload-artifact" in s.get("uses", "")]
        assert "report.html" in kept[0]["with"]["path"]
