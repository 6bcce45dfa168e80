"""The bundled texts are what they claim to be, and broken or user files are read as documented."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from zenconvert.errors import CorruptFile, UsageError
from zenconvert.texts import samples
from zenconvert.texts.samples import (
    LANGUAGES,
    Message,
    Sample,
    Split,
    load_bundled,
    load_file,
)

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
KINDS: Final = ("prose", "science", "chat", "instructions", "numbers", "code")
FEWEST: Final[dict[Split, tuple[int, ...]]] = {
    "calibration": (7, 4, 5, 3, 3, 2),
    "evaluation": (3, 2, 2, 1, 1, 1),
}
FEWEST_IN_ALL: Final[dict[Split, int]] = {"calibration": 24, "evaluation": 10}
ID_PARTS: Final[dict[Split, str]] = {"calibration": "cal", "evaluation": "eval"}
SCRIPTS: Final = {
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"},
    "ko": {"HANGUL"},
    "ru": {"CYRILLIC"},
    "ar": {"ARABIC"},
}
UNSPACED: Final = {"zh", "ja"}
# Vietnamese marks a vowel in most syllables; the others mark few, but none writes 80 words without.
LEAST_DIACRITICS: Final = {"fr": 0.01, "es": 0.01, "de": 0.003, "vi": 0.15}
LEAST_IN_SCRIPT: Final = 0.85
LEAST_IN_SCRIPT_CODE: Final = 0.4
LEAST_HIRAGANA: Final = 0.15
MOST_SHARED: Final = 0.05
SHINGLE_WORDS: Final = 8
SHINGLE_CHARACTERS: Final = 12


def _both_splits(language: str) -> list[Sample]:
    return [sample for split in SPLITS for sample in load_bundled(split, [language])]


def _letters(text: str) -> list[str]:
    return [char for char in text if char.isalpha()]


def _script(letter: str) -> str:
    return unicodedata.name(letter, "NONE").split()[0]


def _length(sample: Sample) -> int:
    if sample.language in UNSPACED:
        return sum(not char.isspace() for char in sample.content)
    return len(sample.content.split())


def _shingles(sample: Sample) -> set[str]:
    text = sample.content.casefold()
    if sample.language in UNSPACED:
        text = "".join(char for char in text if char.isalnum())
        return {text[i : i + SHINGLE_CHARACTERS] for i in range(len(text) - SHINGLE_CHARACTERS + 1)}
    words = re.findall(r"\w+", text)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def _write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_is_there_often_enough(language: str, split: Split) -> None:
    kinds = Counter(sample.kind for sample in load_bundled(split, [language]))
    assert set(kinds) == set(KINDS)
    assert all(kinds[kind] >= fewest for kind, fewest in zip(KINDS, FEWEST[split], strict=True)), (
        kinds
    )
    assert kinds.total() >= FEWEST_IN_ALL[split]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_have_the_documented_form(language: str, split: Split) -> None:
    path = Path(samples.__file__).parent / "data" / f"{language}.{split}.jsonl"
    pattern = re.compile(rf"{language}-{ID_PARTS[split]}-\d{{3}}")
    lines = path.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for line, row in zip(lines, rows, strict=True):
        body = "messages" if row["kind"] == "chat" else "text"
        assert list(row) == ["id", "language", "kind", body]
        assert pattern.fullmatch(row["id"])
        assert row["language"] == language
        assert line == json.dumps(row, ensure_ascii=False)
    for row in rows:
        roles = [message["role"] for message in row.get("messages", [])]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_passages_have_the_promised_length(language: str) -> None:
    low, high = (150, 300) if language in UNSPACED else (80, 150)
    lengths = {sample.id: _length(sample) for sample in _both_splits(language)}
    assert {name: n for name, n in lengths.items() if not low <= n <= high} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_passages_are_in_the_script_of_their_language(language: str) -> None:
    expected = SCRIPTS.get(language, {"LATIN"})
    for sample in _both_splits(language):
        scripts = Counter(_script(letter) for letter in _letters(sample.content))
        share = sum(scripts[script] for script in expected) / scripts.total()
        least = LEAST_IN_SCRIPT_CODE if sample.kind == "code" else LEAST_IN_SCRIPT
        assert share >= least, (sample.id, scripts)
        if language == "ja":
            assert scripts["HIRAGANA"] >= LEAST_HIRAGANA * scripts.total(), sample.id
        if language == "zh":
            assert scripts["HIRAGANA"] + scripts["KATAKANA"] == 0, sample.id


@pytest.mark.parametrize("language", LEAST_DIACRITICS)
def test_latin_passages_carry_their_diacritics(language: str) -> None:
    for sample in _both_splits(language):
        letters = _letters(unicodedata.normalize("NFC", sample.content))
        marked = sum(not letter.isascii() for letter in letters)
        least = LEAST_DIACRITICS[language] / (2 if sample.kind == "code" else 1)
        assert marked >= least * len(letters), (sample.id, marked, len(letters))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_passage_repeats_another(language: str) -> None:
    shingles = {sample.id: _shingles(sample) for sample in _both_splits(language)}
    repeated = {
        (one, other): len(shingles[one] & shingles[other])
        for one, other in combinations(shingles, 2)
        if len(shingles[one] & shingles[other])
        > MOST_SHARED * min(len(shingles[one]), len(shingles[other]))
    }
    assert repeated == {}


def test_shingles_find_a_passage_with_one_word_changed() -> None:
    sample = load_bundled("evaluation", ["en"])[0]
    changed = Sample("copy", "en", sample.kind, sample.content.replace(" piano", " organ"), None)
    assert len(_shingles(sample) & _shingles(changed)) > 0.8 * len(_shingles(sample))


def test_ids_are_unique() -> None:
    ids = Counter(sample.id for split in SPLITS for sample in load_bundled(split))
    assert [name for name, count in ids.items() if count > 1] == []


def test_languages_come_in_the_order_asked_for_and_once() -> None:
    found = [sample.language for sample in load_bundled("evaluation", ["fr", "en", "fr"])]
    assert list(dict.fromkeys(found)) == ["fr", "en"]
    assert len(found) == 2 * found.count("fr")


def test_content_of_a_chat_is_its_messages() -> None:
    chat = Sample("a", "en", "chat", None, (Message("user", "Hi"), Message("assistant", "Hello")))
    assert chat.content == "Hi\nHello"


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(UsageError, match=r"'tlh'.*there is en, zh"):
        load_bundled("calibration", ["en", "tlh"])


def test_a_broken_bundled_row_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "en.evaluation.jsonl", {"text": "Fine."}, ["not", "an", "object"])
    monkeypatch.setattr(samples, "_DATA", tmp_path)
    with pytest.raises(CorruptFile, match=r"en\.evaluation\.jsonl:2.*found list"):
        load_bundled("evaluation", ["en"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "cut o', "not JSON"),
        pytest.param("[" * 100_000, "not JSON", id="too deep"),
        ('"just a string"', "expected a JSON object, found str"),
        ('{"language": "en"}', "either 'text' or 'messages'"),
        ('{"text": "a", "messages": []}', "either 'text' or 'messages'"),
        ('{"text": 7}', "'text' must be a string"),
        ('{"text": "half \\ud83d"}', "surrogate"),
        ('{"text": "a", "language": 3}', "'language' must be a string"),
        ('{"messages": []}', "list that is not empty"),
        ('{"messages": "Hi"}', "list that is not empty"),
        ('{"messages": ["Hi"]}', "every message must be an object"),
        ('{"messages": [{"role": "user"}]}', "'content' must be a string"),
    ],
)
def test_a_broken_row_is_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "Fine."}\n\n' + row + "\n")
    with pytest.raises(CorruptFile, match=message) as caught:
        load_file(path)
    assert "mine.jsonl:3" in str(caught.value)


def test_user_rows_keep_what_they_name_and_default_the_rest(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Ĉu vi venos?"},
        {"role": "assistant", "content": "Jes."},
    ]
    path = _write(
        tmp_path,
        "mine.jsonl",
        {"text": "one\u2028line", "language": "en", "id": "a", "kind": "prose", "source": "me"},
        {"messages": messages, "language": "eo"},
        {"text": "Nenio."},
    )
    assert load_file(path, default_language="eo") == [
        Sample("a", "en", "prose", "one\u2028line", None),
        Sample(
            "mine.jsonl:2",
            "eo",
            "chat",
            None,
            (Message("user", "Ĉu vi venos?"), Message("assistant", "Jes.")),
        ),
        Sample("mine.jsonl:3", "eo", "text", "Nenio.", None),
    ]


def test_rows_as_data_sets_are_exported(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Look."}, {"type": "image"}]
    call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{}]}
    path = _write(
        tmp_path,
        "mine.jsonl",
        {"id": 7, "text": "One.", "messages": None, "language": None, "kind": ""},
        {"text": "  "},
        {"text": None, "language": "de"},
        {"text": "Dois.", "language": "PT_BR"},
        {"messages": [{"role": "user", "content": parts}, call]},
        {
            "prompt": [{"role": "user", "content": "Q"}],
            "completion": [{"role": "a", "content": "A"}],
        },
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"query": "Where?", "response": "Here."},
        {"conversation": [{"role": "user", "content": "Hi"}]},
    )
    assert [(s.id, s.language, s.content) for s in load_file(path)] == [
        ("7", "und", "One."),
        ("mine.jsonl:4", "pt-BR", "Dois."),
        ("mine.jsonl:5", "und", "Look."),
        ("mine.jsonl:6", "und", "Q\nA"),
        ("mine.jsonl:7", "und", "Why?\nSo."),
        ("mine.jsonl:8", "und", "Where?\nHere."),
        ("mine.jsonl:9", "und", "Hi"),
    ]


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffErste Zeile.\n\nZweiter Absatz, schön.\n".encode())
    assert load_file(path) == [
        Sample("book.txt", "und", "text", "Erste Zeile.\n\nZweiter Absatz, schön.\n", None)
    ]


def test_an_empty_plain_file_has_no_document(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n\n")
    assert load_file(path) == []


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(CorruptFile, match="not UTF-8 at byte 2"):
        load_file(path)
    with pytest.raises(UsageError, match="no such text file"):
        load_file(tmp_path / "absent.txt")
