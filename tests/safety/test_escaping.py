"""Text of strangers in every kind of output, read back by parsers that are not ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.fuzz import reports
from tests.safety.test_streams import EVIL
from zenconvert import Report, compare, open_checkpoint
from zenconvert.base.escaping import json_text, plain, shell_word
from zenconvert.errors import InvalidInput, UsageError
from zenconvert.publication.bom import bom, bom_bytes
from zenconvert.publication.card import card
from zenconvert.publication.executors.child import Child
from zenconvert.publication.facts import CalibrationFacts, ReleaseFacts, SourceFacts, VariantFacts
from zenconvert.publication.jobs import Task
from zenconvert.publication.lmstudio import model_yaml
from zenconvert.publication.modelfile import modelfile
from zenconvert.publication.release_report import record, record_bytes
from zenconvert.verification.gate import decide
from zenconvert.verification.markdown import summary
from zenconvert.verification.policy import Policy
from zenconvert.verification.rendering import comparison_page, report_page

HIDDEN = "\u2028\u200f\x85\x9b31m\x7f\ufff9\U000e0041\ud800"
MARKUP = "</script><script>alert(1)</script><b onx='1'>&amp; ]]> <!-- --> \"'`"
WORDS = (
    EVIL,
    HIDDEN,
    MARKUP,
    'a\n\n# head\n\n---\n- x: *y\n"""\n{{ 7*7 }} {% raw %}\n```\n![x](http://e) | `c` ~~~',
    "&anchor *alias !!python/object:os.system {a: [b, : - ? > | % @ ` #",
    "- a", "--- ", "1. a", "12) b", "> q", "=== ", "+ a", "    code",
    "yes", "0x1f", "2001-01-01", "null", "=", "<<",
)  # fmt: skip
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.found.append(("a comment", ()))

    def handle_data(self, data: str) -> None:
        self.words += data


def kinds(markdown: str) -> list[str]:
    """Every block and inline token."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    found = []
    for block in blocks:
        found.append(block.type)
        found += [t.type for t in block.children or () if t.type not in {"text", "text_special"}]
    return [kind for kind in found if kind != "softbreak"]


# Reports


def poisoned(value: Any, word: str, key: str = "") -> Any:
    """A report whose every text is ``word`` that may be any; languages stay."""
    if isinstance(value, dict):
        free = key in {"engine_details", "absent_engines", "failed_engines", "encodings"}
        return {f"{word}{k}" if free else k: poisoned(v, word, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(one, word, key) for one in value]
    fixed = {"sha256", "ids_sha256", "side_files_sha256", "dtype", "language", "languages", "error"}
    return word if isinstance(value, str) and key not in fixed else value


def _everywhere(value: Any, old: str, new: str) -> Any:
    """A language is a key in many places and a value in others."""
    if isinstance(value, dict):
        pairs = ((k, _everywhere(v, old, new)) for k, v in value.items())
        return {new if k == old else k: v for k, v in pairs}
    if isinstance(value, list):
        return [_everywhere(one, old, new) for one in value]
    return new if value == old else value


@pytest.fixture(scope="module")
def value() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reports.report_bytes())
    found["failed_engines"] = {"llamacpp": {"error": "EngineFailed", "reason": "it died"}}
    return found


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("default")


def look(report: Report, policy: Policy, plain_report: Report) -> None:
    """Every output of a report has the form of the plain one's, and nothing that is obeyed."""
    verdict = decide(report, replace(policy, name=report.candidate.path))
    usual = decide(plain_report, policy)
    page, lines = report_page(report, verdict), summary(report, verdict)
    assert not OBEYED.findall(page)
    assert not OBEYED.findall(lines)
    if len(verdict.reasons) == len(usual.reasons):
        assert Tags(page).found == Tags(report_page(plain_report, usual)).found
        assert kinds(lines) == kinds(summary(plain_report, usual))
    assert not {"html_inline", "html_block", "link_open", "image"} & set(kinds(lines))
    both = comparison_page(compare([report, replace(report)]), {}, {report.candidate.path: "why"})
    assert not OBEYED.findall(both)
    assert not [
        tag for tag, names in Tags(both).found if tag in {"script", "b onx"} or "onx" in names
    ]
    told = json_text(report.as_dict(), indent=2)
    assert not OBEYED.findall(told)
    if "\ud800" not in str(report):
        assert json.loads(told) == json.loads(json.dumps(report.as_dict()))


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_every_text_of_a_report(word: str, value: dict[str, Any], policy: Policy) -> None:
    base = Report.from_dict(value)
    look(Report.from_dict(poisoned(value, word.replace("\ud800", ""))), policy, base)
    for language in ("ar", "en"):
        odd = _everywhere(value, language, word)
        odd["documents"].sort(key=lambda row: row["language"])
        if word == HIDDEN:  # half a character is no text
            odd = _everywhere(odd, word, word[:-1])
        look(Report.from_dict(odd), policy, base)


# Releases


def facts_with(word: str) -> ReleaseFacts:
    """Facts whose every free text is a word."""
    report = Report.from_dict(json.loads(reports.report_bytes()))
    verdict = decide(report, Policy.load("default"))
    name = f"x{word}"
    source = SourceFacts(
        word, word, "d" * 64, name, word, word, (word, "en"), (word,), word, word, 1000, 64, None,
        {"eos": word},
    )  # fmt: skip
    variant = VariantFacts(
        word, word, "gguf", "GGUF", ("tiny.gguf",), 1000, False, (word,), report, verdict,
    )  # fmt: skip
    broken = replace(variant, name="broken", files=(), report=None, verdict=None, error=word)
    calibration = CalibrationFacts(word, "a" * 64, "b" * 64, {word: 12}, 7)
    return ReleaseFacts(
        name, source, calibration, word, "e" * 64, word.encode("utf-8", "replace"), word,
        (variant, broken),
    )  # fmt: skip


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_every_text_of_a_card(word: str) -> None:
    facts, usual = facts_with(word), facts_with("word")
    text = card(facts, "GGUF", facts.variants, [word])
    assert not OBEYED.findall(text)
    _, front, body = text.split("---\n", 2)
    _, _, usual_body = card(usual, "GGUF", usual.variants, ["word"]).split("---\n", 2)
    assert kinds(body) == kinds(usual_body)
    metadata = yaml.safe_load(front)
    assert set(metadata) <= {
        "base_model", "base_model_relation", "language", "library_name", "license", "license_name",
        "pipeline_tag", "tags",
    }  # fmt: skip
    assert all(isinstance(one, str) for one in [*metadata["tags"], metadata["license"]])


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_commands_of_a_card_are_words_of_a_shell(word: str) -> None:
    """bash itself takes them apart."""
    word = word.replace("\0", "").replace("\ud800", "")
    written = shell_word(word)
    assert not OBEYED.findall(written)
    assert "\n" not in written
    done = subprocess.run(
        ["bash", "-c", f"printf '%s' {written}"], capture_output=True, check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.decode() == word


def _parsed(text: str) -> list[tuple[str, str]]:
    """(command, value) of a Modelfile, as Ollama's parser takes it apart."""
    found, at = [], 0
    while at < len(text):
        if text[at] == "#":
            at = text.index("\n", at) + 1
        elif text[at] in " \n":
            at += 1
        else:
            match = re.compile(r"(PARAMETER \w+|[A-Z]+) ").match(text, at)
            assert match is not None, text[at : at + 40]
            at = match.end()
            quotes = next((q for q in ('"""', '"') if text.startswith(q, at)), "")
            begin = at + len(quotes)
            at = text.index(quotes or "\n", begin)
            found.append((match[1], text[begin:at]))
            at += len(quotes)
    return found


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_other_files_of_a_shelf(word: str) -> None:
    facts = facts_with(word)
    text = modelfile(facts, facts.variants)
    assert not OBEYED.findall(text)
    commands = _parsed(text)
    assert [c for c, _ in commands][:2] == ["FROM", "PARAMETER num_ctx"] or len(commands) == 3
    assert dict(commands)["FROM"] == "./tiny.gguf"
    assert dict(commands).get("PARAMETER stop", word) == word
    text = model_yaml(facts, facts.variants)
    assert not OBEYED.findall(text)
    if "\ud800" not in word:
        assert yaml.safe_load(text)["metadataOverrides"]["architectures"] == [word]
    for data, expected in (
        (bom_bytes(bom(facts, "GGUF", facts.variants, {"tiny.gguf": "0" * 64})), None),
        (record_bytes(record(facts, facts.variants)), word),
    ):
        assert not OBEYED.findall(data.decode())
        told = json.loads(data)
        if expected is not None:
            assert told["source"]["licence"] == expected


def test_a_name_that_no_modelfile_can_hold() -> None:
    facts = facts_with("word")
    for name in ("a\nFROM evil", "\x1b[2J", '"x"'):
        variant = replace(facts.variants[0], files=(name,))
        with pytest.raises(UsageError, match="Modelfile"):
            modelfile(facts, [variant])


# Files and logs


@pytest.mark.parametrize("name", ["\x1b[2Jx", "a\nb", "\u202ex", "\x9b2J"])
def test_side_files_with_such_names_are_refused(name: str, source: Path) -> None:
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / f"{name}.jinja").write_text("x")
    with pytest.raises(InvalidInput, match="rename it"):
        open_checkpoint(source)


SAYING = "import sys; sys.stdin.readline(); sys.stderr.buffer.write({said!r}); sys.exit({code})"
"""A worker that only says something."""


def _log(tmp_path: Path, said: bytes) -> tuple[str, str]:
    """The log of such a worker and the failure that tells of it."""
    task = Task("variant", (("key", "name"),), "recipe.toml", "")
    child = Child(tmp_path, 1, command=[sys.executable, "-c", SAYING.format(said=said, code=3)])
    failure = child.perform(task, lambda stage, done, total: None)["key"]
    child.end()
    (log,) = (tmp_path / ".zenconvert" / "logs").iterdir()
    return log.read_text(encoding="utf-8"), failure.text


def test_logs_of_jobs_are_not_obeyed(tmp_path: Path) -> None:
    said = f"first\n{EVIL}\nlast é\n".encode() + b"\xff\xc3"
    log, failure = _log(tmp_path, said)
    assert not OBEYED.findall(log)
    assert "first\n\\x1b[31mred" in log
    assert "last é" in log
    assert "exit code 3" in failure
    assert "last é" in failure


def test_endless_logs_of_jobs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenconvert.publication.executors.job_log._MOST", 70_000)
    log, failure = _log(tmp_path, b"x" * 40_000 + b"\n" + b"y" * 80_000 + b"\nthe end\n")
    assert len(log) <= 70_000
    assert "the end" in failure


@pytest.mark.parametrize("sign", [chr(n) for n in (*range(32), 127, *range(128, 160), 0x202E)])
def test_one_sign(sign: str) -> None:
    if sign in "\n\t":
        return
    assert OBEYED.search(sign)
    assert plain(f"a{sign}b") != f"a{sign}b"
    assert not OBEYED.search(plain(sign))
    assert json.loads(json_text([sign])) == [sign]
