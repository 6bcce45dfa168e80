"""Chat templates of every place travel from HF to GGUF and back, under the same names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tokenizers_for_tests import write_json
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.model.architecture import for_model_type

Family = Callable[[str], Path]
PLAIN = "{{ messages[0].content }}é\r\n"
TOOLS = "{{ tools }}"
PLACES: dict[str, dict[str, Any]] = {
    "config": {"config": PLAIN},
    "list": {
        "config": [
            {"name": "default", "template": PLAIN},
            {"name": "tool_use", "template": TOOLS},
        ]
    },
    "list without a default": {"config": [{"name": "rag", "template": TOOLS}]},
    "table": {"config": {"default": PLAIN, "rag": TOOLS}},
    "file": {"chat_template.jinja": PLAIN, "config": "older"},
    "files": {
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/tool_use.jinja": TOOLS,
        "additional_chat_templates/rag.jinja": PLAIN + TOOLS,
        "config": "older",
    },
    "a default among the further files": {
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/default.jinja": TOOLS,
    },
    "an empty file": {"chat_template.jinja": "", "config": "older"},
    "none": {},
}


def folder_with(place: str, source: Path, out: Path) -> Path:
    shutil.copytree(source, out)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    for name, content in PLACES[place].items():
        if name == "config":
            settings["chat_template"] = content
        else:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(content, encoding="utf-8", newline="")
    write_json(out / "tokenizer_config.json", settings)
    return out


@pytest.mark.parametrize("place", PLACES)
def test_there_and_back(place: str, model: Family, tmp_path: Path) -> None:
    source = folder_with(place, model("qwen2"), tmp_path / "m")
    expected = AutoTokenizer.from_pretrained(source).chat_template
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == expected
    convert(source, tmp_path / "copy", "hf:f32")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == expected
    metadata = container.read(tmp_path / "m.gguf").metadata
    named = expected if isinstance(expected, dict) else {"default": expected}
    for name, text in named.items():
        key = "tokenizer.chat_template" + ("" if name == "default" else f".{name}")
        assert metadata.get(key) == (None if text is None else ("str", text))
    names = [name for name in named if name != "default"]
    assert sorted(metadata.get("tokenizer.chat_templates", ("arr:str", []))[1]) == sorted(names)


def test_names_that_keys_cannot_have_are_told(model: Family, tmp_path: Path) -> None:
    shutil.copytree(model("qwen2"), tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    names = {"tool-use": "a", "tool_use": "b", "tool use": "c", "été": "d"}
    settings["chat_template"] = {"default": PLAIN, **names}
    write_json(tmp_path / "m" / "tokenizer_config.json", settings)
    found = plan(tmp_path / "m", "gguf:f32")
    told = {fact.name: fact.place for fact in found.facts if fact.name.startswith("chat template")}
    assert told == {
        "chat template tool-use": "tool_use_2",
        "chat template tool use": "tool_use_3",
        "chat template été": "_t_",
    }
    with pytest.raises(PlanError, match="chat template"):
        convert(tmp_path / "m", tmp_path / "m.gguf", "gguf:f32", exact=True)
    tokenizer = open_checkpoint(tmp_path / "m").tokenizer
    metadata = tokenizer_metadata(tokenizer, for_model_type("qwen2").in_gguf)
    read = tokenizer_from_metadata(metadata, where="test")
    assert sorted(read.named_templates.values()) == ["a", "b", "c", "d"]


def test_a_template_named_default_is_the_one(model: Family) -> None:
    tokenizer = open_checkpoint(model("qwen2")).tokenizer
    metadata = tokenizer_metadata(tokenizer, for_model_type("qwen2").in_gguf)
    metadata.pop("tokenizer.chat_template", None)
    metadata["tokenizer.chat_template.default"] = ("str", PLAIN)
    read = tokenizer_from_metadata(metadata, where="test")
    assert read.chat_template == PLAIN
    assert not read.named_templates
