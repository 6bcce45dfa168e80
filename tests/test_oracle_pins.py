"""The environments of the archived tools hold what the extras of the package ask for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def pins(path: Path) -> dict[str, str]:
    """Package → version of the lines ``name==version``."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", ["auto-gptq", "autoawq", "gptqmodel"])
def test_the_pins_of_an_oracle_satisfy_its_extra(name: str) -> None:
    found = pins(ROOT / "scripts" / "constraints.txt")
    found |= pins(ROOT / "scripts" / "oracle-pins" / f"{name}.txt")
    for line in EXTRAS[name]:
        requirement = Requirement(line)
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), line
