"""The tokenizer of a folder is that of AutoTokenizer; what is odd about one stops only what needs
it, with one error."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from tests.tokenizer_draws import Draw, byte_level_draw, draw, pieces, pieces_draw
from tests.tokenizers_for_tests import write_json
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import (
    CorruptFile,
    InputWarning,
    PlanError,
    UnknownTokenizer,
    UsageError,
    ZenError,
)
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.formats.hf.tokenizer_json import write_tokenizer
from zenconvert.model.architecture import for_model_type
from zenconvert.model.pretokenizer import by_name

Family = Callable[[str], Path]
Gguf = Callable[[str, str], Path]
TEXT = "Việt Nam 2026 — I'm here"


def with_metadata(file: Path, out: Path, metadata: dict[str, Any]) -> Path:
    """A copy of a GGUF file with other key/values."""
    tensors = list(container.read(file).tensors.values())
    first = min(t.offset for t in tensors)
    infos = [(t.name, t.shape, t.type_id, t.offset - first) for t in tensors]
    out.write_bytes(container.pack_header(metadata, infos) + file.read_bytes()[first:])
    return out


def without_pre(file: Path, out: Path, pre: str | None = None) -> Path:
    """A copy of a GGUF file that does not say how it cuts text."""
    metadata = dict(container.read(file).metadata)
    del metadata["tokenizer.ggml.pre"]
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = ("str", pre)
    return with_metadata(file, out, metadata)


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_without_a_pre_tokenizer_can_be_told_it(
    pre: str | None, gguf: Gguf, tmp_path: Path
) -> None:
    source = gguf("builtin:zen-nano", "f32")
    file = without_pre(source, tmp_path / "old.gguf", pre)
    with pytest.raises(UnknownTokenizer, match=r"old\.gguf.*--pre"):
        convert(file, tmp_path / "hf", "hf:f32")
    with pytest.raises(UsageError, match="no-such-rule"):
        convert(file, tmp_path / "hf", "hf:f32", options=Options(pre_tokenizer="no-such-rule"))
    with pytest.raises(UsageError, match="no-such-rule"):
        convert(file, tmp_path / "g", "gguf:f16", options=Options(pre_tokenizer="no-such-rule"))
    expected = AutoTokenizer.from_pretrained(open_checkpoint("builtin:zen-nano").path)(TEXT)
    for target in ("hf:f32", "onnx:f32"):
        out = tmp_path / target.replace(":", "-")
        convert(file, out, target, options=Options(pre_tokenizer="qwen2"))
        assert AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"] == expected["input_ids"]
    convert(file, tmp_path / "new.gguf", "gguf:f16", options=Options(pre_tokenizer="qwen2"))
    found = container.read(tmp_path / "new.gguf").metadata["tokenizer.ggml.pre"]
    assert found == ("str", "qwen2")
    opened = open_checkpoint(file, pre="qwen2")
    assert TextEncoder(opened.tokenizer).encode(TEXT) == expected["input_ids"]
    with pytest.raises(UsageError, match="--pre"):
        open_checkpoint("builtin:zen-nano", pre="qwen2")


@pytest.mark.parametrize("key", ["padding", "unknown", "seperator", "bos"])
@pytest.mark.parametrize("bad", [4294967295, "size"])
def test_special_ids_beyond_the_vocabulary_are_absent_roles(
    bad: int | str, key: str, gguf: Gguf, tmp_path: Path
) -> None:
    found = container.read(gguf("builtin:zen-nano", "f32"))
    size = len(found.metadata["tokenizer.ggml.tokens"][1])
    number = size if bad == "size" else bad
    metadata = {**found.metadata, f"tokenizer.ggml.{key}_token_id": ("u32", number)}
    role = {"padding": "pad", "unknown": "unk", "seperator": "sep"}.get(key, key)
    assert role not in tokenizer_from_metadata(metadata, where="test").special
    del metadata["tokenizer.ggml.pre"]
    file = with_metadata(gguf("builtin:zen-nano", "f32"), tmp_path / "odd.gguf", metadata)
    with pytest.warns(InputWarning, match=f"{key}_token_id"):
        opened = open_checkpoint(file)
    assert any(f"{key}_token_id" in text for text in opened.warnings)


def templates(folder: Path) -> Path:
    """Chat templates of every place, of which the files count."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": "OLD"})
    (folder / "chat_template.jinja").write_bytes("NEW é\r\n{{ messages }}".encode())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("TOOLS")
    return folder


@pytest.mark.parametrize("target", ["hf:bf16", "gptq:w4g32", "onnx:int4-g32", "gguf:f16"])
def test_templates_of_files_travel_everywhere(target: str, model: Family, tmp_path: Path) -> None:
    folder = templates(Path(shutil.copytree(model("qwen2"), tmp_path / "m")))
    expected = AutoTokenizer.from_pretrained(folder).chat_template
    assert expected == {"default": "NEW é\n{{ messages }}", "tool_use": "TOOLS"}
    out = tmp_path / "out"
    convert(folder, out, target)
    if target.startswith("gguf"):
        convert(out, tmp_path / "back", "hf:bf16")
        out = tmp_path / "back"
    assert AutoTokenizer.from_pretrained(out).chat_template == expected


def test_transformers_js_finds_templates_of_files(model: Family, tmp_path: Path) -> None:
    folder = templates(Path(shutil.copytree(model("qwen2"), tmp_path / "m")))
    convert(folder, tmp_path / "o", "onnx:f32", options=Options(layout="transformers.js"))
    settings = json.loads((tmp_path / "o" / "tokenizer_config.json").read_text())
    assert {row["name"]: row["template"] for row in settings["chat_template"]} == {
        "default": "NEW é\n{{ messages }}",
        "tool_use": "TOOLS",
    }


@pytest.mark.parametrize("where", ["added_tokens_decoder", "added_tokens.json", "pad_token"])
def test_tokens_of_every_file_are_there(where: str, tmp_path: Path) -> None:
    drawn = draw(3)
    folder = replace(drawn, size=drawn.size + 4).write(tmp_path / "m")
    library = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    free = library.get_vocab_size()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if where == "pad_token":
        settings["pad_token"] = "<fresh>"
    elif where == "added_tokens_decoder":
        token = {"content": "<fresh>", "special": True, "normalized": False}
        settings[where] = {str(free): {**token, "lstrip": False, "rstrip": False}}
    else:
        write_json(folder / where, {"<fresh>": free})
    write_json(folder / "tokenizer_config.json", settings)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder, vocab_size=drawn.size + 4)
    number = theirs.get_vocab()["<fresh>"]
    assert ours.tokens[number] == "<fresh>"
    text = "a<fresh>b <fresh>"
    assert TextEncoder(ours).encode(text) == theirs.encode(text, add_special_tokens=False)


def unigram(definition: dict[str, Any]) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", *"aeht"]
    definition["model"] = {
        "type": "Unigram", "unk_id": 0, "byte_fallback": True,
        "vocab": [[text, -float(i) / 9] for i, text in enumerate(pieces)],
    }  # fmt: skip
    definition["added_tokens"] = []
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    definition.update(normalizer=None, pre_tokenizer=meta, post_processor=None, decoder=None)


def word_level(definition: dict[str, Any]) -> None:
    vocab = {"<unk>": 0, "the": 1, "cat": 2}
    definition["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    definition["added_tokens"] = []
    definition.update(
        normalizer={"type": "Lowercase"}, pre_tokenizer={"type": "Whitespace"},
        post_processor=None, decoder=None,
    )  # fmt: skip


@pytest.mark.parametrize("change", [unigram, word_level])
def test_any_kind_serves_but_for_gguf(
    change: Callable[[dict[str, Any]], None], model: Family, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model("llama3"), tmp_path / "m"))
    definition = json.loads((folder / "tokenizer.json").read_text())
    change(definition)
    write_json(folder / "tokenizer.json", definition)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = AutoTokenizer.from_pretrained(folder)
    encoder = TextEncoder(open_checkpoint(folder).tokenizer)
    assert encoder.encode("the cat é") == theirs.encode("the cat é", add_special_tokens=False)
    plan(folder, "gptq:w4g32")
    with pytest.raises(UnknownTokenizer, match=r"Unigram|WordLevel"):
        convert(folder, tmp_path / "o.gguf", "gguf:f16")


def test_what_llamacpp_does_otherwise_is_in_the_plan(model: Family, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("qwen2"), tmp_path / "m"))
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"][0]["lstrip"] = True
    write_json(folder / "tokenizer.json", definition)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    lost = plan(folder, "gguf:f16").lost
    assert [fact.name for fact in lost] == ["tokenizer.json"]
    assert "lstrip" in str(lost[0].value)
    with pytest.raises(PlanError, match="lstrip"):
        plan(folder, "gguf:bf16", exact=True)


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one place."""

    def change(tree: dict[str, Any]) -> None:
        part: Any = tree
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value

    return change


@pytest.mark.parametrize("value", ["x", 7, ["a"], {"type": 5}, {"type": "Sequence"}, True])
@pytest.mark.parametrize(
    "path",
    [("added_tokens",), ("added_tokens", 0, "content"), ("post_processor",), ("normalizer",),
     ("pre_tokenizer",), ("model",), ("model", "vocab"), ("model", "merges"), ("decoder",)],
)  # fmt: skip
def test_an_ill_typed_part_is_one_error(
    path: tuple[str | int, ...], value: Any, tmp_path: Path
) -> None:
    drawn = draw(3)
    put(*path, value=value)(drawn.files["tokenizer.json"])
    folder = drawn.write(tmp_path / "m")
    try:
        found = read_tokenizer(folder, vocab_size=drawn.size)
        tokenizer_metadata(found, for_model_type("llama").in_gguf)
    except ZenError:
        pass
    else:
        FastTokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"7": "a"}},
        {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}},
        {"added_tokens_decoder": {"7": {"content": ["a"]}}},
        {"added_tokens_decoder": {"7": {"content": "a", "lstrip": "yes"}}},
        {"added_tokens_decoder": ["a"]},
        {"add_bos_token": [True]},
        {"extra_special_tokens": 7},
        {"pad_token": {"content": 7}},
        {"chat_template": 7},
        {"chat_template": "\ud800"},
        {"pad_token": "\ud800"},
    ],
)
def test_an_ill_typed_config_is_one_error(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = draw(3).write(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CorruptFile, match=r"tokenizer_config\.json"):
        read_tokenizer(folder, vocab_size=9999)


def test_a_prefix_that_would_abort_the_library_is_refused(tmp_path: Path) -> None:
    drawn = draw(3)
    drawn.files["tokenizer.json"]["model"]["continuing_subword_prefix"] = "007"
    with pytest.raises(CorruptFile, match="continuing_subword_prefix"):
        read_tokenizer(drawn.write(tmp_path / "m"), vocab_size=drawn.size)


def test_two_tokens_of_one_text_cannot_be_written() -> None:
    metadata = {
        "tokenizer.ggml.model": ("str", "gpt2"), "tokenizer.ggml.pre": ("str", "gpt-2"),
        "tokenizer.ggml.tokens": ("arr:str", ["a", "b", "a"]),
        "tokenizer.ggml.merges": ("arr:str", []),
    }  # fmt: skip
    with pytest.raises(ZenError, match="0 and 2"):
        write_tokenizer(tokenizer_from_metadata(metadata, where="test"))


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
SPARE = [
    "chat_template.jinja", "additional_chat_templates/tools.jinja", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "README.md", "LICENSE",
]  # fmt: skip
NEEDED = ["tokenizer.json", "tokenizer_config.json"]


def each(names: list[str], content: bytes) -> list[tuple[str, bytes]]:
    return [(name, content) for name in names]


@pytest.mark.parametrize(
    ("name", "content"), [*each(SPARE, POINTER), *each([*SPARE[2:], "tokenizer.model"], b"")]
)
def test_a_side_file_that_is_none_does_not_travel(
    name: str, content: bytes, model: Family, tmp_path: Path
) -> None:
    shutil.copytree(model("llama3"), tmp_path / "m")
    good = open_checkpoint(tmp_path / "m").tokenizer
    file = tmp_path / "m" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.warns(InputWarning, match=re.escape(name)):
        found = open_checkpoint(tmp_path / "m").tokenizer
    assert replace(found, warnings=()) == replace(good, warnings=())
    with pytest.warns(InputWarning, match=re.escape(name)):
        convert(tmp_path / "m", tmp_path / "out", "hf:bf16")
    assert not (tmp_path / "out" / name).exists()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").encode("some words")
    assert ids == AutoTokenizer.from_pretrained(model("llama3")).encode("some words")


@pytest.mark.parametrize(
    ("name", "content"), [*each([*NEEDED, "tokenizer.model"], POINTER), *each(NEEDED, b"")]
)
def test_a_needed_side_file_that_is_none_is_refused(
    name: str, content: bytes, model: Family, tmp_path: Path
) -> None:
    shutil.copytree(model("llama3"), tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(content)
    what = "git lfs pull" if content else "empty"
    with pytest.raises(CorruptFile, match=what):
        convert(tmp_path / "m", tmp_path / "out", "hf:bf16")
    assert not (tmp_path / "out").exists()


def test_classes_that_transformers_builds_anew_are_warned_of(tmp_path: Path) -> None:
    """LlamaTokenizer writes spaces as it likes, whatever tokenizer.json says."""
    source = pieces_draw(3, random.Random(3), plain=True)
    settings = source.files["tokenizer_config.json"]

    def cut(name: str) -> tuple[list[int], tuple[str, ...]]:
        settings["tokenizer_class"] = name
        path = source.write(tmp_path / name)
        ids = AutoTokenizer.from_pretrained(path).encode("  ab <s>cd", add_special_tokens=False)
        return ids, read_tokenizer(path, vocab_size=source.size).warnings

    plain, told = cut("PreTrainedTokenizerFast")
    assert not told
    other, told = cut("LlamaTokenizer")
    assert other != plain
    assert "LlamaTokenizer" in told[0]
    lone = Draw(0, "lone", 1600, {"tokenizer.model": pieces()}).write(tmp_path / "lone")
    told = read_tokenizer(lone, vocab_size=1600).warnings
    assert any("no tokenizer.json" in text for text in told)


CLASSES = ("", "PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer", "GemmaTokenizer")
TYPES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "ernie4_5", "smollm3")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", TYPES)
def test_what_transformers_builds_by_the_model_s_type(kind: str, name: str, tmp_path: Path) -> None:
    """Its ids, or a warning; none where the class's name changes nothing."""
    chance, rule = random.Random(4), by_name("llama-bpe")
    assert rule is not None
    for drawn in (byte_level_draw(4, chance, rule, plain=True), pieces_draw(4, chance, plain=True)):
        settings = drawn.files["tokenizer_config.json"]
        settings.pop("tokenizer_class", None)
        settings |= {"tokenizer_class": name} if name else {}
        folder = drawn.write(tmp_path / drawn.kind.replace(" ", "-"))
        write_json(folder / "config.json", {"model_type": kind, "vocab_size": drawn.size})
        ours = read_tokenizer(folder, vocab_size=drawn.size)
        theirs, encoder = AutoTokenizer.from_pretrained(folder), TextEncoder(ours)
        other = [
            text
            for text in drawn.texts(12)
            if theirs.encode(text, add_special_tokens=False) != encoder.encode(text)
        ]
        told = [text for text in ours.warnings if "transformers 5 builds" in text]
        assert bool(told) == bool(other), (drawn.kind, other, ours.warnings)


@pytest.mark.parametrize("key", ["image_token", "bos_token", "additional_special_tokens"])
def test_tokens_as_objects_stay_what_they_are(
    key: str, model: Family, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """transformers 4 marks them, and 5 takes an unmarked one for no token."""
    shutil.copytree(model("llama3"), tmp_path / "m")
    file = tmp_path / "m" / "tokenizer_config.json"
    table = json.loads(file.read_text())
    text = table["bos_token"] if key == "bos_token" else "<image>"
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    token = {"__type": "AddedToken", "content": text, **flags}
    table[key] = [token] if key.endswith("s") else token
    file.write_text(json.dumps(table))
    convert(tmp_path / "m", tmp_path / "out", "hf:bf16")
    assert not [w for w in recwarn if "__type" in str(w.message)]
    found, expected = (AutoTokenizer.from_pretrained(tmp_path / p) for p in ("out", "m"))
    for words in ("<image> some words", f"a{text} b"):
        assert found.encode(words) == expected.encode(words)
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "m" / "config.json").read_text()) | {"__type": "other"})
    )
    convert(tmp_path / "m", tmp_path / "again", "hf:bf16")
    assert "__type" not in json.loads((tmp_path / "again" / "config.json").read_text())
