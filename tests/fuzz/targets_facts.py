"""Targets: single readers of a folder, without what others read and without planning.

Beside the whole paths of ``targets_folders`` and ``targets_files``: many times as many inputs in
the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from tests.fuzz import models
from tests.fuzz.models import Files
from tests.fuzz.target import Target
from tests.fuzz.targets_files import graph
from tests.fuzz.targets_folders import (
    CONFIG_WORDS,
    PACKED_WORDS,
    WEIGHTS,
    attempt,
    card,
    json_files,
    packed_mutation,
)
from zenconvert import open_checkpoint
from zenconvert.formats.gguf import generation
from zenconvert.formats.gguf.general import general_metadata
from zenconvert.formats.gguf.tokenizer import tokenizer_metadata
from zenconvert.formats.hf.reader import folder_metadata
from zenconvert.formats.onnx.read import container
from zenconvert.formats.onnx.rotary import frequencies
from zenconvert.formats.registry import FORMATS
from zenconvert.inspection import describe
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.target import Options
from zenconvert.model.target import Target as Aim

_AIMS: Final = tuple(map(Aim.parse, ("gguf:f16", "hf:f32", "onnx:int4", "gptq:w4g32")))


def _only(base: Callable[[], Files], *suffixes: str) -> Callable[[], Files]:
    return lambda: {name: data for name, data in base().items() if name.endswith(suffixes)}


def _folder(family: str = "llama3") -> Callable[[], Files]:
    return lambda: models.files_of(models.folder(family))


def _read_config(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    describe(checkpoint).as_dict()
    for aim in _AIMS:
        attempt(partial(FORMATS[aim.format].facts, checkpoint, aim, Options()))
    attempt(lambda: frequencies(checkpoint.hyperparameters))


@cache
def _model() -> Checkpoint:
    """What the facts of a folder belong to."""
    found = open_checkpoint(models.folder())
    _ = found.tokenizer
    return found


@cache
def _tokenizer_keys() -> dict[str, tuple[str, object]]:
    checkpoint = _model()
    return dict(tokenizer_metadata(checkpoint.tokenizer, checkpoint.architecture.in_gguf))


def _read_facts(path: Path) -> None:
    """The card, how to generate text, and what is carried from GGUF; as GGUF writes them."""
    metadata, _ = folder_metadata(path)
    checkpoint = replace(_model(), metadata=metadata)
    attempt(lambda: general_metadata(checkpoint, []))
    attempt(lambda: list(generation.facts(checkpoint, _tokenizer_keys())))


def _packed(kind: str) -> Callable[[], Files]:
    return lambda: models.files_of(models.converted(kind))


def _read_packed(path: Path) -> None:
    describe(open_checkpoint(path)).as_dict()


TARGETS: Final = (
    Target(
        "config-facts", _only(_folder(), "config.json", WEIGHTS),
        json_files("config.json", words=CONFIG_WORDS), _read_config,
    ),
    Target(
        "experts-facts", _only(_folder("mixtral"), "config.json", WEIGHTS),
        json_files("config.json", words=CONFIG_WORDS), _read_config,
    ),
    Target("card-facts", _only(_folder(), "README.md"), card, _read_facts, cheap=True),
    Target(
        "generation-facts", _only(_folder(), "generation_config.json", "zenconvert.json"),
        json_files("generation_config.json", "zenconvert.json"), _read_facts, cheap=True,
    ),
    *(
        Target(
            f"{kind}-facts", _only(_packed(f"{kind}:w4g32"), "config.json", WEIGHTS),
            packed_mutation(*PACKED_WORDS), _read_packed,
        )
        for kind in ("gptq", "awq")
    ),
    Target(
        "onnx-container", _only(_packed("onnx:int4"), ".onnx", ".data"), graph,
        lambda path: container.read(path / "model.onnx"),
    ),
)  # fmt: skip
