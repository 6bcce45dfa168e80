"""Texts and reports that several tests look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from zenconvert import Report, verify
from zenconvert.texts.samples import Sample, load_bundled

SOURCE = "builtin:zen-nano"
Gguf = Callable[[str, str], Path]
Verified = Callable[[str, str], Report]


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Prose and a chat in two languages."""
    return [
        sample
        for language in ("en", "de")
        for sample in load_bundled("evaluation", [language])[3:7]
    ]


@pytest.fixture(scope="session")
def text(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These samples as a user's file."""
    path = tmp_path_factory.mktemp("text") / "mine.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            row: dict[str, Any] = {"language": sample.language, "id": sample.id}
            if sample.messages is None:
                row["text"] = sample.text
            else:
                row["messages"] = chat_of(sample)
            file.write(json.dumps(row) + "\n")
    return path


def chat_of(sample: Sample) -> list[dict[str, str]]:
    """The messages of a chat as transformers takes them."""
    return [{"role": m.role, "content": m.content} for m in sample.messages or ()]


@pytest.fixture(scope="session")
def verified(gguf: Gguf, text: Path) -> Verified:
    """(file type, engine) → report on the GGUF of that type."""

    @cache
    def get(file_type: str, engine: str) -> Report:
        return verify(SOURCE, gguf(SOURCE, file_type), engine=engine, text=text, threads=1)

    return get


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few words, where numbers do not matter."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text("The ferry leaves at nine, and nobody waits for it.")
    return path
