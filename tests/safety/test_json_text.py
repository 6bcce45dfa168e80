"""JSON of others: its bytes, its depth and its values are bounded before anything is parsed."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from zenconvert import open_checkpoint
from zenconvert.base import json_text
from zenconvert.base.json_text import check_shape, json_value
from zenconvert.errors import CorruptFile
from zenconvert.formats import safetensors_container
from zenconvert.formats.hf.json_file import read_json

MEGABYTE = 1 << 20
SIGNS = ['"', "\\", "[", "]", "{", "}", ",", "é", "x", "\n"]


def random_value(choices: random.Random, depth: int) -> Any:
    """A value nested at most ``depth`` deep, whose texts hold what structure is made of."""
    kind = choices.choice(("text", "number", "list", "table")) if depth else "text"
    if kind == "text":
        return "".join(choices.choices(SIGNS, k=choices.randrange(6)))
    if kind == "number":
        return choices.randrange(-99, 99)
    inner = [random_value(choices, depth - 1) for _ in range(choices.randrange(4))]
    if kind == "list":
        return inner
    return {f"{n}{random_value(choices, 0)}": one for n, one in enumerate(inner)}


def depth_of(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(depth_of, inner), default=0) if isinstance(inner, list) else 0


@pytest.mark.parametrize("slab", [1, 7, MEGABYTE])
def test_depths_are_those_of_what_is_parsed(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_SLAB", slab)
    choices = random.Random(slab)
    seen = set()
    for _ in range(200):
        value = random_value(choices, 6)
        text = json.dumps(value, ensure_ascii=choices.random() < 0.5)
        depth = depth_of(json.loads(text))
        seen.add(depth)
        for limit in (depth, depth - 1)[: 1 + bool(depth)]:
            monkeypatch.setattr(json_text, "MAX_NESTING", limit)
            if limit == depth:
                check_shape(text)
            else:
                with pytest.raises(ValueError, match="nested more than"):
                    check_shape(text.encode())
    assert seen >= {0, 1, 2, 3, 4, 5}


def test_values_are_counted_outside_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_VALUES", 4)
    assert json_value('[1, "\\",,,,[[[[", 3]') == [1, '",,,,[[[[', 3]
    with pytest.raises(ValueError, match="more than 4 values"):
        json_value("[1, 2, 3, 4, 5]")


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, "[" + "[]," * 8_000_000 + "[]]"])
def test_nothing_is_parsed_before(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="more than"):
        json_value(text)
    header = f'{{"a": {text}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CorruptFile, match="more than"):
        safetensors_container.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("config.json", 8), ("generation_config.json", 8), ("tokenizer_config.json", 32),
        ("tokenizer.json", 128), ("model.safetensors.index.json", 128),
    ],
)  # fmt: skip
def test_bytes_are_bounded_by_the_kind_of_file(name: str, most: int, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(most * MEGABYTE + 1)  # a hole: it takes no room
    with pytest.raises(CorruptFile, match=rf"{name}: .*at most {most * MEGABYTE}$"):
        read_json(path)


def test_a_config_of_many_megabytes(source: Path) -> None:
    with (source / "config.json").open("ab") as file:
        file.write(b" " * 73 * MEGABYTE)
    with pytest.raises(CorruptFile, match=r"config\.json: it has \d+ bytes; .* at most"):
        open_checkpoint(source)
