"""Models that many tests read; nobody writes into their folders."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.families import FAMILIES, Config, one_period
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert

Family = Callable[[str], Path]


LONGEST: Final = (
    "test_families.py", "test_release.py", "test_verify.py", "test_foreign_code.py",
    "test_solving.py", "test_doctor.py", "test_retry.py", "test_differential.py",
    "test_native.py", "test_llamacpp_parity.py", "test_tasks.py", "test_surroundings.py",
    "test_autoawq.py", "test_gptqmodel.py", "test_auto_gptq.py", "test_producing.py",
    "test_progress.py", "test_wrappers.py", "test_facts.py", "test_named_config.py",
    "test_docs.py", "test_ray_cluster.py", "test_blocks_encode.py", "test_iq_quants.py",
    "test_k_quants.py", "test_mixtures.py", "test_fisher.py", "test_hybrids.py", "test_latents.py",
    "test_backward.py", "test_further_layers.py", "test_allotting.py",
    "test_device_encoders.py",
)  # fmt: skip
"""Files that take minutes. They are begun first: where several processes share the files, none has
a long one left at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others as they were."""
    at = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: at.get(item.path.name, len(at)))


ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own for the whole run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENCONVERT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """What the command's entry point says to interpreters that it starts, and its answers to
    signals, end with the test."""
    before = os.environ.get("PYTHONSAFEPATH")
    answers = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, answer in answers.items():
        signal.signal(number, answer)
    os.environ.pop("PYTHONSAFEPATH", None)
    if before is not None:
        os.environ["PYTHONSAFEPATH"] = before


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Family → folder of a small random model with a tokenizer of its kind."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            folder.mkdir()
            vocab = MAKERS[family](folder)
            made[family] = raw_model(
                folder, family, vocab_size=vocab, bos_token_id=1, eos_token_id=2
            )
        return made[family]

    return get


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Family → a random bfloat16 model with a tokenizer."""
    return _made_of(lambda config: config, tmp_path_factory)


@pytest.fixture(scope="session")
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The same with one period of the pattern of its layers."""
    return _made_of(one_period, tmp_path_factory)


def _made_of(changed: Callable[[Config], Config], place: pytest.TempPathFactory) -> Family:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family = FAMILIES[name]
            out = place.mktemp("families") / f"tiny-{name}"
            out.mkdir()
            vocab = MAKERS[family.tokenizer](out)
            config = changed(family.config)
            made[name] = raw_model(
                out, config, vocab_size=vocab, bos_token_id=1, eos_token_id=2, biases=True,
                queries=family.queries, states=family.states,
            )  # fmt: skip
        return made[name]

    return get


@pytest.fixture(scope="session")
def gguf(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(family or builtin:NAME, file type) → our GGUF of that model."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("gguf")

    def get(family: str, file_type: str) -> Path:
        if (family, file_type) not in made:
            source = family if ":" in family else model(family)
            out = folder / f"{family.replace(':', '-')}-{file_type}.gguf"
            convert(source, out, f"gguf:{file_type}")
            made[family, file_type] = out
        return made[family, file_type]

    return get
