"""Conversions of a model so small that a run takes a few milliseconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.safety.outputs import Case, finals
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import Options, plan
from zenconvert.conversion import run


class Shape(NamedTuple):
    """Name and target of an output; ``old`` gives other bytes under the same names."""

    out: str
    target: str
    old: str
    split: int = 0
    """Kilobytes of a part; 0 for one file."""


SHAPES = {
    "file": Shape("out.gguf", "gguf:f16", "gguf:bf16"),
    "parts": Shape("out.gguf", "gguf:f16", "gguf:bf16", 140),
    "folder": Shape("out", "hf:f16", "hf:bf16"),
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of half a megabyte that nobody writes to."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    return raw_model(
        folder, "llama3", vocab_size=MAKERS["llama3"](folder), bos_token_id=1, eos_token_id=2,
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def cases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """One case of every shape."""
    made = {}
    for name, shape in SHAPES.items():
        options = Options(split_max_size=shape.split * 1000 or None)
        arguments = ["--to", shape.target]
        if shape.split:
            arguments += ["--split-max-size", f"{shape.split}K"]
        new, old = (
            plan(tiny, target, out=shape.out, options=options, threads=2)
            for target in (shape.target, shape.old)
        )
        found = []
        for planned in (new, old):
            folder = tmp_path_factory.mktemp("whole")
            run(planned, folder / shape.out)
            found.append(finals(folder))
        made[name] = Case(tiny, shape.out, tuple(arguments), new, old, *found)
        assert made[name].old.keys() == made[name].new.keys()
        assert made[name].old != made[name].new
    assert len(made["parts"].new) > 3
    return made


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Every shape in turn."""
    return cases[request.param]


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))
