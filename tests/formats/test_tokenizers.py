"""Tokenizers: every reader and writer gives the token ids of the original library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.oracles.special_vocab import special_vocab
from tests.tiny import raw_model
from tests.tokenizers_for_tests import evaluation_texts, write_json
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    SourceNotFound,
    UnknownTokenizer,
    UsageError,
)
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata, tokenizer_metadata
from zenconvert.formats.hf import sentencepiece_model, special_tokens
from zenconvert.formats.hf.tokenizer import TextEncoder, read_tokenizer
from zenconvert.formats.hf.tokenizer_json import write_tokenizer
from zenconvert.model.architecture import for_model_type
from zenconvert.model.tokenizer import TokenType

Family = Callable[[str], Path]
Gguf = Callable[[str, str], Path]
SOURCES = ("builtin:zen-nano", "qwen2", "llama3", "mixtral")


def folder_of(source: str, model: Family) -> Path:
    return open_checkpoint(source).path if ":" in source else model(source)


def original(folder: Path) -> Callable[[str], list[int]]:
    """Text → ids by the library that the tokenizer was made with."""
    if (folder / "tokenizer.model").exists():
        model_file = str(folder / "tokenizer.model")
        processor: Any = sentencepiece.SentencePieceProcessor(model_file=model_file)
        return lambda text: list(processor.encode(text))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("source", SOURCES)
def test_ids_are_the_same_everywhere(
    source: str, model: Family, gguf: Gguf, tmp_path: Path
) -> None:
    """llama.cpp on the written file, transformers on the way back, and our own encoders."""
    folder, file = folder_of(source, model), gguf(source, "f32")
    convert(file, tmp_path / "hf", "hf:f32")
    encode = original(folder)
    engine = llama_cpp.Llama(model_path=str(file), vocab_only=True, verbose=False)
    back = AutoTokenizer.from_pretrained(tmp_path / "hf")
    encoders = [TextEncoder(open_checkpoint(path).tokenizer) for path in (folder, file)]
    languages = evaluation_texts()
    assert len(languages) > 4
    for language, texts in languages.items():
        for text in texts:
            expected = encode(text)
            found = {
                "llama.cpp": engine.tokenize(text.encode(), add_bos=False, special=True),
                "transformers": back.encode(text, add_special_tokens=False),
                "ours": encoders[0].encode(text),
                "ours on GGUF": encoders[1].encode(text),
            }
            for who, ids in found.items():
                assert list(ids) == expected, (language, who, text)
            # with what the model wants at the beginning
            assert list(engine.tokenize(text.encode(), add_bos=True)) == back.encode(text)
    engine.close()


@pytest.mark.parametrize("source", SOURCES)
def test_the_neutral_tokenizer_survives_both_formats(
    source: str, model: Family, tmp_path: Path
) -> None:
    """Metadata → tokenizer → HF files → tokenizer → metadata: nothing changes."""
    folder = folder_of(source, model)
    checkpoint = open_checkpoint(folder)
    arch, size = checkpoint.architecture.in_gguf, checkpoint.hyperparameters.vocab
    first = tokenizer_metadata(checkpoint.tokenizer, arch)
    neutral = tokenizer_from_metadata(first, where="test")
    for name, data in write_tokenizer(neutral).items():
        (tmp_path / name).write_bytes(data)
    ids = {f"{role}_token_id": i for role, i in neutral.special.items()}
    write_json(tmp_path / "config.json", ids)
    second = tokenizer_metadata(read_tokenizer(tmp_path, vocab_size=size), arch)
    assert list(first) == list(second)
    for key, value in first.items():
        assert repr(value) == repr(second[key]), key


def test_named_templates_are_kept(model: Family, tmp_path: Path) -> None:
    tokenizer = replace(
        open_checkpoint(model("qwen2")).tokenizer,
        chat_template="plain",
        named_templates={"tool_use": "tools", "rag": "documents"},
    )
    metadata = tokenizer_metadata(tokenizer, for_model_type("qwen2").in_gguf)
    assert metadata["tokenizer.chat_templates"] == ("arr:str", ["tool_use", "rag"])
    for name, data in write_tokenizer(tokenizer_from_metadata(metadata, where="test")).items():
        (tmp_path / name).write_bytes(data)
    write_json(tmp_path / "config.json", {})
    again = read_tokenizer(tmp_path, vocab_size=len(tokenizer.tokens))
    assert again.chat_template == "plain"
    assert again.named_templates == {"tool_use": "tools", "rag": "documents"}


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json"])
def test_templates_beside_the_config_are_found(where: str, model: Family, tmp_path: Path) -> None:
    shutil.copytree(model("qwen2"), tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    write_json(tmp_path / "m" / "tokenizer_config.json", settings)
    text = "{{ messages }}"
    content = text if where.endswith("jinja") else json.dumps({"chat_template": text})
    (tmp_path / "m" / where).write_text(content)
    assert open_checkpoint(tmp_path / "m").tokenizer.chat_template == text


def changed_definition(
    source: Path, folder: Path, change: Callable[[dict[str, Any]], None]
) -> Path:
    """A copy of a model whose tokenizer.json was changed."""
    shutil.copytree(source, folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    change(definition)
    write_json(folder / "tokenizer.json", definition)
    return folder


def other_expression(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+|\W+"}


def other_normalizer(definition: dict[str, Any]) -> None:
    definition["normalizer"] = {"type": "Lowercase"}


def other_pre_tokenizer(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"] = {"type": "Whitespace"}


def prefix_space(definition: dict[str, Any]) -> None:
    definition["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


@pytest.mark.parametrize(
    "change", [other_expression, other_normalizer, other_pre_tokenizer, prefix_space]
)
def test_an_unknown_pre_tokenizer_is_refused_and_can_be_named(
    change: Callable[[dict[str, Any]], None], model: Family, tmp_path: Path
) -> None:
    folder = changed_definition(model("qwen2"), tmp_path / "m", change)
    # before any tensor work: the weights are not even whole
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
    with pytest.raises(UnknownTokenizer, match="--pre"):
        convert(folder, tmp_path / "out.gguf", "gguf:f16")
    assert not (tmp_path / "out.gguf").exists()
    options = Options(pre_tokenizer="qwen2")
    convert(folder, tmp_path / "out.gguf", "gguf:f16", options=options)
    found = container.read(tmp_path / "out.gguf").metadata["tokenizer.ggml.pre"]
    assert found == ("str", "qwen2")


def test_the_structure_decides_not_the_vocabulary(model: Family, tmp_path: Path) -> None:
    """The same expression with whole words kept or merged is another rule."""

    def merge_words(definition: dict[str, Any]) -> None:
        definition["model"]["ignore_merges"] = False

    folder = changed_definition(model("llama3"), tmp_path / "m", merge_words)
    assert open_checkpoint(model("llama3")).tokenizer.rule == "llama-bpe"
    assert open_checkpoint(folder).tokenizer.rule == "dbrx"


def test_a_name_that_only_llamacpp_knows_is_kept_and_stops_hf(gguf: Gguf, tmp_path: Path) -> None:
    convert(
        open_checkpoint("builtin:zen-nano").path,
        tmp_path / "a.gguf",
        "gguf:f16",
        options=Options(pre_tokenizer="chameleon"),
    )
    with pytest.raises(UnknownTokenizer, match="chameleon"):
        convert(tmp_path / "a.gguf", tmp_path / "hf", "hf:f16")
    convert(
        open_checkpoint("builtin:zen-nano").path,
        tmp_path / "b.gguf",
        "gguf:f16",
        options=Options(pre_tokenizer="deepseek-r1-qwen"),
    )
    convert(tmp_path / "b.gguf", tmp_path / "hf", "hf:f16")
    convert(tmp_path / "hf", tmp_path / "c.gguf", "gguf:f16")
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_pre_makes_no_sense_for_sentencepiece(model: Family, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--pre"):
        convert(
            model("mixtral"), tmp_path / "a.gguf", "gguf:f16",
            options=Options(pre_tokenizer="qwen2"),
        )  # fmt: skip


def test_gpt2_files_serve_where_tokenizer_json_is_missing(model: Family, tmp_path: Path) -> None:
    """vocab.json and merges.txt, as Qwen1.5 ships them."""
    folder = tmp_path / "m"
    shutil.copytree(model("qwen2"), folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", definition["model"]["vocab"])
    rows = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(rows) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "Qwen2Tokenizer"})
    found, expected = open_checkpoint(folder).tokenizer, open_checkpoint(model("qwen2")).tokenizer
    assert list(found.tokens) == list(expected.tokens)
    assert list(found.types) == list(expected.types)
    assert (list(found.merges), found.rule) == (list(expected.merges), "qwen2")
    text = "Việt Nam 2026 — <|im_start|>user"
    assert TextEncoder(found).encode(text) == TextEncoder(expected).encode(text)


def test_byte_fallback_without_a_sentencepiece_model(model: Family, tmp_path: Path) -> None:
    """tokenizer.json alone gives llama.cpp the scores it needs for the same ids."""
    folder = tmp_path / "m"
    shutil.copytree(model("mixtral"), folder)
    tokenizer = open_checkpoint(folder).tokenizer
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_bytes(write_tokenizer(tokenizer)["tokenizer.json"])
    convert(folder, tmp_path / "out.gguf", "gguf:f16")
    engine = llama_cpp.Llama(model_path=str(tmp_path / "out.gguf"), vocab_only=True, verbose=False)
    encode = original(model("mixtral"))
    for texts in evaluation_texts().values():
        for text in texts:
            assert list(engine.tokenize(text.encode(), add_bos=False)) == encode(text)
    engine.close()


def test_sentencepiece_models_are_read_and_written_as_the_library_does(
    model: Family, tmp_path: Path
) -> None:
    path = model("mixtral") / "tokenizer.model"
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = sentencepiece_model.read(path)
    assert [p.text for p in found.pieces] == [
        processor.id_to_piece(i) for i in range(processor.vocab_size())
    ]
    assert [p.score for p in found.pieces] == [
        processor.get_score(i) for i in range(processor.vocab_size())
    ]
    special = {"unk": 0, "bos": 1, "eos": 2}
    data = sentencepiece_model.write(found.pieces, special, add_dummy_prefix=True)
    again: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert (again.unk_id(), again.bos_id(), again.eos_id(), again.pad_id()) == (0, 1, 2, -1)
    for texts in evaluation_texts().values():
        assert [again.encode(t) for t in texts] == [processor.encode(t) for t in texts]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 64,
        lambda data: b"",
        lambda data: data.replace("▁".encode(), b"\xff\xfe\xfd"),
        lambda data: b"\x0a\xff\xff\xff\xff\x0f" + data,
    ],
)
def test_a_broken_sentencepiece_model_is_refused(
    damage: Callable[[bytes], bytes], model: Family, tmp_path: Path
) -> None:
    shutil.copytree(model("mixtral"), tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptFile, match=r"tokenizer\.model"):
        convert(tmp_path / "m", tmp_path / "out.gguf", "gguf:f16")


def test_unigram_models_are_refused(model: Family, tmp_path: Path) -> None:
    shutil.copytree(model("mixtral"), tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three four", "five six seven eight"] * 20),
        model_prefix=str(tmp_path / "unigram"), model_type="unigram", vocab_size=23,
        minloglevel=2,
    )  # fmt: skip
    shutil.copy(tmp_path / "unigram.model", path)
    with pytest.raises(UnknownTokenizer, match="BPE"):
        convert(tmp_path / "m", tmp_path / "out.gguf", "gguf:f16")


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "m")
    with pytest.raises(SourceNotFound, match="tokenizer"):
        convert(folder, tmp_path / "out.gguf", "gguf:f16")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d["model"].update(type="WordPiece"), CorruptFile),
        (lambda d: d["model"].update(vocab=["a"]), CorruptFile),
        (lambda d: d["model"].update(vocab={"a": 99999}), InvalidInput),
        (lambda d: d["model"].update(vocab={"a": -1}), InvalidInput),
        (lambda d: d["model"].update(vocab={"a": "b"}), CorruptFile),
        (lambda d: d["model"].update(merges="a b"), CorruptFile),
        (lambda d: d["model"].update(merges=[["a"]]), CorruptFile),
        (lambda d: d["model"].update(merges=["a b c"]), CorruptFile),
        (lambda d: d.update(added_tokens=[{"id": 3}]), CorruptFile),
        (lambda d: d.update(added_tokens=[{"id": 10**9, "content": "x"}]), InvalidInput),
        (lambda d: d.update(model=None), CorruptFile),
    ],
)
def test_a_broken_tokenizer_json_is_refused(
    change: Callable[[dict[str, Any]], None],
    error: type[Exception],
    model: Family,
    tmp_path: Path,
) -> None:
    folder = changed_definition(model("qwen2"), tmp_path / "m", change)
    with pytest.raises(error):
        convert(folder, tmp_path / "out.gguf", "gguf:f16")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", ("arr:i32", [1, 2])),
        ("tokenizer.ggml.tokens", None),
        ("tokenizer.ggml.token_type", ("arr:i32", [1])),
        ("tokenizer.ggml.token_type", ("arr:str", ["1"])),
        ("tokenizer.ggml.merges", ("arr:str", ["ab"])),
        ("tokenizer.ggml.eos_token_id", ("str", "2")),
        ("tokenizer.ggml.model", ("u32", 1)),
    ],
)
def test_broken_tokenizer_keys_are_refused(key: str, value: Any, gguf: Gguf) -> None:
    metadata = dict(container.read(gguf("builtin:zen-nano", "f32")).metadata)
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(CorruptFile, match="test: "):
        tokenizer_from_metadata(metadata, where="test")


def test_other_kinds_of_tokenizer_are_named(gguf: Gguf) -> None:
    metadata = dict(container.read(gguf("builtin:zen-nano", "f32")).metadata)
    metadata["tokenizer.ggml.model"] = ("str", "bert")
    with pytest.raises(UnknownTokenizer, match="bert"):
        tokenizer_from_metadata(metadata, where="test")


def template(single: list[Any], pair: list[Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}


A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
BEGIN, END, SEP = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>", "<|"))
ADDED = [{"id": i, "content": text} for i, text in enumerate(("<s>", "</s>", "<|", "<pad>"))]
BYTES = {"type": "ByteLevel"}
POST_PROCESSORS = {
    "none": None,
    "bytes": BYTES,
    "bos": template([BEGIN, A], [BEGIN, A, BEGIN, B]),
    "bos without another": template([BEGIN, A], [BEGIN, A, B]),
    "bos and eos": template([BEGIN, A, END], [BEGIN, A, END, BEGIN, B, END]),
    "eos": template([A, END], [A, END, B, END]),
    "separator": template([BEGIN, A], [BEGIN, A, END, B]),
    "both": {"type": "Sequence", "processors": [BYTES, template([BEGIN, A], [A, B])]},
    "another eos": template([A, SEP], [A, SEP, B, SEP]),
    "plain": template([A], [A, B]),
}
SETTINGS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "tokens": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "<pad>"}},
    "flags": {
        "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True,
    },
    "null": {"bos_token": None, "eos_token": None, "unk_token": "<absent>"},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("post", POST_PROCESSORS)
def test_special_tokens_are_told_as_gguf_tells_them(
    post: str, settings: str, tmp_path: Path
) -> None:
    definition = {"added_tokens": ADDED, "post_processor": POST_PROCESSORS[post], "model": {}}
    config = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 3, "unk_token_id": None}
    write_json(tmp_path / "tokenizer.json", definition)
    write_json(tmp_path / "config.json", config)
    given = SETTINGS[settings]
    if given is not None:
        write_json(tmp_path / "tokenizer_config.json", given)
    expected = special_vocab(tmp_path, 8)
    special, adds = special_tokens.find(definition, given, config, vocab_size=8)
    theirs = {r: i for r, i in expected.special_token_ids.items() if r != "cls"}
    assert list({r: i for r, i in special.items() if r != "cls"}.items()) == list(theirs.items())
    assert list(adds.items()) == list(expected.add_special_token.items())


def test_padding_is_marked_as_unused(model: Family) -> None:
    tokenizer = open_checkpoint(model("qwen2")).tokenizer
    assert tokenizer.tokens[8192] == "[PAD8192]"
    assert set(tokenizer.types[8192:]) == {TokenType.UNUSED}
