"""A tiny model and all of its variants, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.production.variants import everything
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert.batch.production import Gathered


class Production(NamedTuple):
    """A source and what was produced of it."""

    source: Path
    out: Path
    state: Path
    gathered: Gathered
    made: dict[str, Any]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float32: whoever changed weights that solvers share would be found out."""
    folder = tmp_path_factory.mktemp("production") / "model"
    folder.mkdir()
    return raw_model(folder, "llama3", dtype="f32", vocab_size=MAKERS["llama3"](folder))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of a forward pass depend on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def production(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Production:
    """All variants."""
    out = tmp_path_factory.mktemp("made")
    state = tmp_path_factory.mktemp("state")
    return Production(source, out, state, *everything(source, out, state))
