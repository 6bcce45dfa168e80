"""Samples come from files, folders, tables and data sets, each in its language."""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from zenconvert.errors import (
    CorruptFile,
    InputWarning,
    MissingDependency,
    SourceNotFound,
    UsageError,
    ZenError,
)
from zenconvert.texts import sample_sources
from zenconvert.texts.sample_sources import language_of, load_samples
from zenconvert.texts.samples import Message, Sample, load_bundled

ROWS: list[dict[str, Any]] = [
    {"text": "Hello.", "language": "en", "id": "a"},
    {"text": "   ", "language": "en", "id": "b"},
    {"text": "Salut.", "language": "fr", "id": "c"},
]


def test_the_bundled_texts_are_the_default() -> None:
    assert load_samples(None, ["de"]) == load_bundled("calibration", ["de"])


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("de.jsonl", "de"),
        ("de.train.txt", "de"),
        ("zh-Hant.txt", "zh-Hant"),
        ("yue.parquet", "yue"),
        ("wiki.txt", "und"),
        ("README.md", "und"),
        ("de", "und"),
        ("EN.txt", "und"),
        ("zh_CN.csv", "zh-CN"),
        ("sr-Latn.txt", "sr-Latn"),
        ("de-train.txt", "und"),
    ],
)
def test_a_files_name_says_its_language(name: str, language: str) -> None:
    assert language_of(Path(name)) == language


def test_a_folder_is_all_its_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "de.txt").write_text("Hallo Welt.")
    (tmp_path / "en.jsonl").write_text(
        '{"text": "One."}\n{"text": "Deux.", "language": "fr"}\n'
        '{"messages": [{"role": "user", "content": "Hi"}]}\n'
    )
    (tmp_path / "notes.bin").write_bytes(b"\xff\x00")
    with pytest.warns(InputWarning, match=r": 1 thing in it is .*: notes\.bin \(no suffix of "):
        found = load_samples(tmp_path)
    (tmp_path / "notes.bin").unlink()
    assert [(s.language, s.content) for s in found] == [
        ("en", "One."),
        ("fr", "Deux."),
        ("en", "Hi"),
        ("de", "Hallo Welt."),
    ]
    assert [s.language for s in load_samples(tmp_path, ["de", "fr"])] == ["fr", "de"]
    with pytest.raises(UsageError, match="no text in ko; there is de, en, fr"):
        load_samples(tmp_path, ["en", "ko"])


def test_what_is_left_out_of_a_folder_is_told_by_name(tmp_path: Path) -> None:
    folder, other = tmp_path / "texts", tmp_path / "other"
    (folder / ".git").mkdir(parents=True)
    other.mkdir()
    (folder / ".git" / "index").write_bytes(b"DIRC")
    (folder / ".gitattributes").write_text("*")
    (folder / "en.txt").write_text("One.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_samples(folder)) == 1
    (folder / "a.py").write_text("1")
    (folder / "de.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Zwei."}'))
    (folder / "fr.txt").symlink_to(tmp_path / "nothing")
    (folder / "it.txt").mkdir()
    (folder / "more").symlink_to(other)
    os.mkfifo(folder / "nl.jsonl")
    with pytest.warns(InputWarning) as told:
        assert len(load_samples(folder)) == 1
    assert str(told[0].message) == (
        f"{folder}: 5 things in it are no samples and left out: "
        "de.jsonl.gz (compressed with gzip; unpack it first), "
        "fr.txt (a link to nothing that can be read), nl.jsonl (no file), "
        "a.py (no suffix of samples), more (a link to a folder)"
    )
    (folder / "en.txt").unlink()
    with pytest.warns(InputWarning, match="5 things"), pytest.raises(UsageError, match="no text"):
        load_samples(folder)


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    rows = [*ROWS, {"messages": chat, "language": None, "id": "d"}]
    path = tmp_path / "es.parquet"
    columns = dict.fromkeys(("id", "text", "language", "messages", "score"))
    parquet.write_table(pyarrow.Table.from_pylist([{**columns, **row} for row in rows]), path)
    assert load_samples(path) == [
        Sample("a", "en", "text", "Hello.", None),
        Sample("c", "fr", "text", "Salut.", None),
        Sample("d", "es", "chat", None, (Message("user", "Hi"), Message("assistant", "Yes?"))),
    ]
    parquet.write_table(pyarrow.Table.from_pylist([{"id": 7, "text": "Uno."}]), path)
    assert load_samples(path) == [Sample("7", "es", "text", "Uno.", None)]


def test_only_the_first_rows_of_a_table_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_sources, "MOST_ROWS", 5)
    table = pyarrow.Table.from_pylist([{"text": f"Text {n}."} for n in range(9)])
    parquet.write_table(table, tmp_path / "en.parquet")
    assert len(load_samples(tmp_path / "en.parquet")) == 5


def test_sources_that_are_not_there_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file or folder.*hub:"):
        load_samples("nobody/nothing")
    with pytest.raises(UsageError, match="no text in it"):
        load_samples(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(CorruptFile, match=r"x\.parquet: it cannot be read as parquet"):
        load_samples(tmp_path / "x.parquet")
    parquet.write_table(
        pyarrow.Table.from_pylist([{"text": "a", "messages": [{"role": "x", "content": "y"}]}]),
        tmp_path / "x.parquet",
    )
    with pytest.raises(CorruptFile, match=r"x\.parquet:1: expected either"):
        load_samples(tmp_path / "x.parquet")


class Datasets(ModuleType):
    """Stands in for the package, which would go to the network."""

    def __init__(self) -> None:
        super().__init__("datasets")
        self.asked: list[tuple[str, str, bool]] = []

    def load_dataset(self, name: str, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        self.asked.append((name, split, streaming))
        if split == "absent":
            raise ValueError("Bad split: absent")
        return iter(ROWS)


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = Datasets()
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert [s.id for s in load_samples("hub:some-body/texts")] == ["a", "c"]
    assert [s.id for s in load_samples("hub:some-body/texts:dev.v2", ["fr"])] == ["c"]
    assert datasets.asked == [
        ("some-body/texts", "train", True),
        ("some-body/texts", "dev.v2", True),
    ]
    with pytest.raises(SourceNotFound, match=r"the split 'absent'.*Bad split"):
        load_samples("hub:some-body/texts:absent")


def test_the_real_package_has_what_is_asked_of_it(tmp_path: Path) -> None:
    """A local data set goes through the same call."""
    import datasets

    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    rows = datasets.load_dataset(str(tmp_path), split="train", streaming=True)
    assert [row["id"] for row in rows] == ["a", "b", "c"]


@pytest.mark.parametrize(("package", "source"), [("datasets", "hub:a/b"), ("pyarrow", "x.parquet")])
def test_missing_packages_are_named(
    package: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"zenconvert\[datasets\]"):
        load_samples(source)


ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
SHARED = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n"


def test_arrays_of_rows(tmp_path: Path) -> None:
    rows = [{"text": "Hallo", "language": "de"}, {"text": "Hi"}, ALPACA, SHARED]
    (tmp_path / "arr.json").write_text(json.dumps(rows))
    found = load_samples(tmp_path / "arr.json")
    assert [(s.language, s.content) for s in found] == [
        ("de", "Hallo"),
        ("und", "Hi"),
        ("und", "Name a colour.\nBlue."),
        ("und", "Hi\nHello"),
    ]
    assert [m.role for s in found[2:] for m in s.messages or ()] == ["user", "assistant"] * 2
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    assert [s.content for s in load_samples(tmp_path / "lines.json")] == [s.content for s in found]


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello"], ["And?", "Fine."]],
        [
            {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
            {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Fine."},
        ],
    ],
    ids=["pairs", "objects"],
)  # fmt: skip
def test_turns_before_a_question(history: list[Any], tmp_path: Path) -> None:
    rows = [{**ALPACA, "history": history, "system": "Be short."}, {**ALPACA, "history": []}]
    rows.append({**SHARED, "system": "Be short."})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    long, short, shared = load_samples(tmp_path / "a.jsonl")
    assert [m.content for m in long.messages or ()] == [
        "Be short.", "Hi", "Hello", "And?", "Fine.", "Name a colour.", "Blue.",
    ]  # fmt: skip
    roles = [m.role for m in long.messages or ()]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert short.content == "Name a colour.\nBlue."
    assert shared.content == "Be short.\nHi\nHello"


def test_other_suffixes_of_the_same_kinds(tmp_path: Path) -> None:
    for suffix in ("jsonlines", "ldjson", "jl"):
        (tmp_path / f"a.{suffix}").write_text('{"text": "One."}\n{"text": "Two."}')
        assert [s.text for s in load_samples(tmp_path / f"a.{suffix}")] == ["One.", "Two."]
    (tmp_path / "a.tab").write_text("question\tanswer\nQ\tA\n")
    assert load_samples(tmp_path / "a.tab")[0].content == "Q\nA"
    parquet.write_table(pyarrow.table({"text": ["One."], "response": ["x"]}), tmp_path / "a.pq")
    assert load_samples(tmp_path / "a.pq")[0].text == "One."
    parquet.write_table(pyarrow.table({"content": ["One."]}), tmp_path / "b.parquet")
    with pytest.raises(CorruptFile, match=r"expected a column .*'content'"):
        load_samples(tmp_path / "b.parquet")


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "de.csv").write_text('id,text\n1,"Guten Tag,\nWelt"\n2,\n3,Ende\n')
    (tmp_path / "t.tsv").write_text("instruction\tinput\toutput\nAdd.\t1 + 1\t2\n")
    found = load_samples(tmp_path / "de.csv")
    assert [(s.id, s.language, s.text) for s in found] == [
        ("1", "de", "Guten Tag,\nWelt"),
        ("3", "de", "Ende"),
    ]
    (chat,) = load_samples(tmp_path / "t.tsv")
    assert chat.content == "Add.\n\n1 + 1\n2"


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("a.pdf", "%PDF-1.7", UsageError, r"\.pdf files are no plain text"),
        ("a.docx", "PK", UsageError, "JSON lines"),
        ("a.html", "<p>", UsageError, "JSON lines"),
        ("a.json", "[1, 2]", CorruptFile, r"a\.json:1: expected a JSON object"),
        ("a.json", "{", CorruptFile, "neither a JSON array nor JSON lines"),
        ("a.json", '[{"body": "x"}]', CorruptFile, r"expected either 'text' or 'messages'"),
        (
            "a.json",
            '[{"instruction": "x", "output": "y", "history": [["Hi"]]}]',
            CorruptFile,
            r"'history' must be a list of pairs",
        ),
        ("a.csv", "body\nx\n", CorruptFile, r"expected a column 'text'"),
        ("a.jsonl", '{"text": ' + "7" * 5000 + "}", CorruptFile, r"a\.jsonl:1"),
        ("a.txt", '{"text": "x"}\n{"text": "y"}', UsageError, r"name it \.jsonl"),
        ("a", '[{"conversations": []}]', UsageError, r"name it \.jsonl"),
        ("a.yaml", "- text: x", UsageError, r"\.yaml files are no plain text"),
        ("a.txt", LFS, CorruptFile, "git lfs pull"),
        ("a.jsonl", LFS, CorruptFile, "git lfs pull"),
        ("a.csv", LFS, CorruptFile, "git lfs pull"),
        ("a.parquet", LFS, CorruptFile, "git lfs pull"),
        ("a.json", "<!DOCTYPE html>", CorruptFile, "a web page"),
    ],
)
def test_what_is_no_text_is_refused(
    name: str, text: str, error: type[ZenError], words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=words):
        load_samples(tmp_path / name)
