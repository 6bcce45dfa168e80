"""Tiny models that the tests of packed formats share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A random Qwen2 with a tokenizer, for tests to quantize as other tools do."""
    folder = tmp_path / "source"
    folder.mkdir()
    return raw_model(folder, vocab_size=MAKERS["qwen2"](folder))


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → folder of a tiny model in float16, without a tokenizer."""
    home, made = tmp_path_factory.mktemp("floats"), dict[str, Path]()

    def get(family: str) -> Path:
        if family not in made:
            made[family] = raw_model(home / family, family, dtype="f16")
        return made[family]

    return get


@pytest.fixture(scope="module")
def gptq(
    floats: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Target type → our folder of the tiny Llama."""
    home, made = tmp_path_factory.mktemp("gptq"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = home / kind
            convert(floats("llama3"), made[kind], f"gptq:{kind}")
        return made[kind]

    return get
