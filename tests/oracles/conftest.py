"""One process per tool, and small models that all of them know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.oracles.tool import Tool
from zenconvert import convert, open_checkpoint

Family = Callable[[str], Path]
Written = Callable[[str, str], Path]


def _running(name: str, factory: pytest.TempPathFactory) -> Iterator[Tool]:
    tool = Tool(name, factory.mktemp(name) / "log.txt")
    yield tool
    tool.close()


@pytest.fixture(scope="session")
def auto_gptq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """AutoGPTQ 0.7.1."""
    yield from _running("auto-gptq", tmp_path_factory)


@pytest.fixture(scope="session")
def autoawq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """AutoAWQ 0.2.9."""
    yield from _running("autoawq", tmp_path_factory)


@pytest.fixture(scope="session")
def gptqmodel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """GPTQModel 7 with transformers 5."""
    yield from _running("gptqmodel", tmp_path_factory)


@pytest.fixture(scope="session")
def transformers4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """transformers 4.57."""
    yield from _running("transformers4", tmp_path_factory)


@pytest.fixture(scope="session")
def packed(folder: Family, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """(family of ``tests.families``, target) → our folder, rounded to nearest."""
    return _kept(tmp_path_factory.mktemp("packed"), folder)


@pytest.fixture(scope="session")
def hub_parser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """@huggingface/gguf 0.4."""
    yield from _running("huggingface-gguf", tmp_path_factory)


@pytest.fixture(scope="session")
def mistralrs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """mistral.rs 0.9."""
    yield from _running("mistralrs", tmp_path_factory)


@pytest.fixture(scope="session")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """OpenVINO 2026.4."""
    yield from _running("openvino", tmp_path_factory)


@pytest.fixture(scope="session")
def mlx_lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """mlx-lm 0.32 on the CPU."""
    yield from _running("mlx-lm", tmp_path_factory)


@pytest.fixture(scope="session")
def diffusers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """diffusers 0.42."""
    yield from _running("diffusers", tmp_path_factory)


@pytest.fixture(scope="session")
def ctranslate2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """CTranslate2 4.8."""
    yield from _running("ctranslate2", tmp_path_factory)


@pytest.fixture(scope="session")
def auto_round(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tool]:
    """AutoRound 0.16."""
    yield from _running("auto-round", tmp_path_factory)


@pytest.fixture(scope="session")
def written(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """(family or builtin:NAME, target) → our folder."""
    return _kept(tmp_path_factory.mktemp("ours"), lambda source: folder_of(source, model))


def _kept(home: Path, float_model: Callable[[str], Path]) -> Written:
    """(name, target) → the folder made of the model of that name, once for each."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str, target: str) -> Path:
        if (name, target) not in made:
            out = home / f"{name}-{target}".replace(":", "-")
            convert(float_model(name), out, target)
            made[name, target] = out
        return made[name, target]

    return get


def folder_of(source: str, model: Family) -> Path:
    """The float model."""
    return open_checkpoint(source).path if ":" in source else model(source)
